"""The SHA-256 of a weights file, computed once.

A 5 GB file takes seconds to hash, so the result is kept in the user's cache folder until the file changes.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

from ldm.jobs.file_notes import recall, remember

NOTES = "sha256"                # folder of the notes


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
    digest = known_sha256(path)
    if digest is None:
        digest = _hash(Path(path))
        remember(path, NOTES, {"sha256": digest})
    return digest


def known_sha256(path: str | Path) -> str | None:
    """Return the SHA-256 of a file if it was computed before and the file has not changed."""
    note = recall(path, NOTES)
    digest = note.get("sha256") if note else None
    return digest if isinstance(digest, str) else None


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
