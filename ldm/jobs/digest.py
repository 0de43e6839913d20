"""The SHA-256 of a weights file, computed once.

A 5 GB file takes seconds to hash, so the result is kept in the user's cache folder under the file's path,
size and modification time. A cache that cannot be written costs time, nothing else.
"""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path


def sha256_in_background(path: str | Path) -> Callable[[], str | None]:
    """Start hashing in a thread; the returned call waits for the digest (None if the file cannot be read).

    Hashing leaves Python's lock, so it runs beside the loading of the model. A daemon thread: Ctrl-C does not
    wait for it.
    """
    result: list[str] = []

    def work() -> None:
        with contextlib.suppress(OSError):
            result.append(sha256(path))

    thread = threading.Thread(target=work, name="sha256", daemon=True)
    thread.start()

    def wait() -> str | None:
        thread.join()
        return result[0] if result else None

    return wait


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file, from the cache when the file has not changed."""
    path = Path(path).resolve()
    status = path.stat()
    key = hashlib.sha256(f"{path}\0{status.st_size}\0{status.st_mtime_ns}".encode()).hexdigest()
    note = _cache_folder() / f"{key}.json"
    try:
        return json.loads(note.read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        digest = _hash(path)
    _remember(note, {"sha256": digest, "file": str(path)})
    return digest


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _remember(note: Path, value: dict[str, str]) -> None:
    partial = note.with_suffix(f".{os.getpid()}.tmp")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value))
        os.replace(partial, note)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "ldm" / "sha256"
