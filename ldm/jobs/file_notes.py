"""Remember what was found out about a file or folder, in the user's cache folder.

A note is kept under the path, size and modification time of every file, so it is forgotten with the first
change. A cache that cannot be read or written costs time, nothing else.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def recall(path: str | Path, what: str) -> dict[str, Any] | None:
    """Return the note that `remember` wrote, if the file is as it was then."""
    try:
        note = json.loads(_place(path, what).read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None


def remember(path: str | Path, what: str, note: dict[str, Any]) -> None:
    """Keep a note about a file; `what` is the name of a folder."""
    with contextlib.suppress(OSError):
        place = _place(path, what)
        partial = place.with_suffix(f".{os.getpid()}.tmp")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(note | {"file": str(path)}))
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)


def _place(path: str | Path, what: str) -> Path:
    path = Path(path).resolve()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    states = "".join(f"{file}\0{file.stat().st_size}\0{file.stat().st_mtime_ns}\n" for file in files)
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "ldm" / what / f"{hashlib.sha256(states.encode()).hexdigest()}.json"
