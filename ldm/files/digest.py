"""The SHA-256 of a file: computed, or taken from the cache while the file has not changed.

Hashing 5 GB takes seconds, so the digest of a weights file is kept in the user's cache folder.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from ldm.errors import OutOfMemory
from ldm.files import cache
from ldm.files.reading import reading

KIND = "sha256"                 # folder in the cache
FOLDER_FILES = (".safetensors", ".bin", ".json")        # of a diffusers folder, which decide an image


def fresh_sha256(path: str | Path) -> str:
    """Read a file and return its hexadecimal SHA-256; nothing is cached."""
    digest = hashlib.sha256()
    with reading(path), open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256(path: str | Path, afresh: bool = False) -> str:
    """Return the hexadecimal SHA-256 of a file, from the cache if the file has not changed.

    Args:
        afresh: read the file all the same: for a digest that the user asked for.
    """
    digest = None if afresh else known_sha256(path)
    if digest is None:
        before = cache.state(path)
        digest = fresh_sha256(path)
        if cache.state(path) == before:         # else it was written to meanwhile
            cache.put(path, KIND, {"sha256": digest})
    return digest


def known_sha256(path: str | Path) -> str | None:
    """Return the SHA-256 of a file if it was computed before and the file has not changed."""
    found = cache.get(path, KIND)
    digest = found.get("sha256") if found else None
    return digest if isinstance(digest, str) else None


def digest_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of a diffusers folder.

    That of a folder is of the sorted lines `SHA-256  NAME` of its weights and JSON files, and of those in its
    sub-folders that have a configuration; images and notes that lie there do not count.
    """
    path = Path(path)
    if not path.is_dir():
        return sha256(path)
    parts = [path, *(part for part in path.iterdir() if any(part.glob("*config.json")))]
    files = sorted(file for part in parts for file in part.iterdir() if file.suffix in FOLDER_FILES)
    lines = [f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()


def sha256_in_background(path: str | Path) -> Callable[[], str | None]:
    """Start `digest_of` in a thread; the returned function waits for it (None if it cannot be read).

    Hashing releases Python's lock, so it runs while the model is loaded. Ctrl-C does not wait for the thread.
    """
    result: list[str] = []

    def work() -> None:
        with contextlib.suppress(OSError, MemoryError, OutOfMemory):
            result.append(digest_of(path))

    thread = threading.Thread(target=work, name="sha256", daemon=True)
    thread.start()

    def wait() -> str | None:
        thread.join()
        return result[0] if result else None

    return wait
