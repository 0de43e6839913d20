"""Findings about a file or folder, kept in memory and in the user's cache folder.

The key is the path, size, inode and times of modification and change of every file, so a change to any of
them discards the finding. Whoever asks for a digest by name is answered from the file all the same
(`ldm.files.digest`). A cache folder that cannot be read or written costs time, nothing else.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ldm.files.atomic import atomic_write

_found: dict[Path, dict[str, Any]] = {}     # in this process, where the cache folder may be read-only


def get(path: str | Path, kind: str) -> dict[str, Any] | None:
    """Return what `put` stored, if no file has changed since."""
    place = _place(path, kind)
    if place in _found:
        return _found[place]
    try:
        finding = json.loads(place.read_text())
    except (OSError, ValueError):
        return None
    return finding if isinstance(finding, dict) else None


def put(path: str | Path, kind: str, finding: dict[str, Any]) -> None:
    """Store a finding about a file or folder; `kind` names a folder of the cache."""
    with contextlib.suppress(OSError):
        place = _place(path, kind)
        _found[place] = finding
        text = json.dumps(finding | {"file": str(path)})
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, lambda temporary: temporary.write_text(text), durable=False)


def folder(kind: str) -> Path:
    """Return the folder of the user's cache for one kind of finding."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "ldm" / kind


def _place(path: str | Path, kind: str) -> Path:
    return folder(kind) / f"{state(path)}.json"


def state(path: str | Path) -> str:
    """Return a digest of what the system says of a file, or of all files in a folder."""
    path = Path(path).resolve()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in files:
        about = file.stat()
        numbers = (about.st_size, about.st_ino, about.st_mtime_ns, about.st_ctime_ns)
        digest.update(os.fsencode(file) + b"\0%d %d %d %d\n" % numbers)
    return digest.hexdigest()
