"""Files that are whole or absent: written under another name beside the target, then moved."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

TEMPORARY_PREFIX = ".ldm-"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then put the result under `path` in one indivisible move.

    Whoever looks sees the old file or the new one, also after a power cut. Only SIGKILL leaves the
    temporary file behind.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}.tmp"
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~current_umask())  # some writers make files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def current_umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
