"""Findings about a file or folder, kept in memory and in the user's cache folder.

The key is the path, size and modification time of every file, so a change to any of them discards the
finding. A cache folder that cannot be read or written costs time, nothing else.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

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
        partial = place.with_suffix(f".{os.getpid()}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(finding | {"file": str(path)}))
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)


def _place(path: str | Path, kind: str) -> Path:
    path = Path(path).resolve()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    states = "".join(f"{file}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\n" for file in files)
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "ldm" / kind / f"{hashlib.sha256(states.encode()).hexdigest()}.json"
