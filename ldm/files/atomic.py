"""Files and folders that are complete or absent: written under a temporary name, then moved into place.

Whoever looks sees the old content or the new one, also after a power cut. Only SIGKILL leaves a temporary
file or folder behind; whoever next writes in that folder removes it, if the process that made it is gone.
Of processes elsewhere (another machine, or a container, whose host name is random) only the age tells.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".ldm-"
LEFT_OVER = re.compile(r"\.ldm-(?P<process>\d+)-((?P<machine>[0-9a-f]{8})-)?[0-9a-f]+\.tmp")
ABANDONED_AFTER = 7 * 86400             # seconds without a change
AT_FDCWD, RENAME_EXCHANGE = -100, 2     # of Linux's renameat2

_swept: set[Path] = set()               # folders in which this process has looked for what others left behind


def temporary_path(folder: Path) -> Path:
    """Return a name in `folder` that no other process and no other call uses."""
    if folder not in _swept:
        _swept.add(folder)
        sweep(folder)
    return folder / f"{TEMPORARY_PREFIX}{os.getpid()}-{_machine()}-{secrets.token_hex(6)}.tmp"


def sweep(folder: Path) -> None:
    """Remove what processes that are gone have left behind in a folder, and log its names."""
    removed = []
    for name in os.listdir(folder) if folder.is_dir() and os.name == "posix" else ():
        match, path = LEFT_OVER.fullmatch(name), folder / name
        with contextlib.suppress(OSError):  # another process sweeps, too
            if match and _is_abandoned(match, path):
                size = sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(f"{name} ({size / 1e6:.1f} MB)")
    if removed:
        some = ", ".join(removed[:3]) + (f" and {len(removed) - 3} more" if len(removed) > 3 else "")
        logger.info("removed from %s what a killed run had left there: %s", folder, some)


def _is_abandoned(match: re.Match[str], path: Path) -> bool:
    is_from_here = match["machine"] in (None, _machine())
    if is_from_here and not _is_running(int(match["process"])):
        return True
    return time.time() - path.stat().st_mtime > ABANDONED_AFTER


@cache
def _machine() -> str:
    """Return a mark of this machine and its space of process numbers; folders are shared over networks."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:                     # another user's
        pass
    return True


def atomic_write(path: Path, write: Callable[[Path], object], durable: bool = True) -> None:
    """Call write(temporary path), then move the result to `path` in one step.

    Args:
        durable: flush it to the disk, so that it survives a power cut; this takes time.
    """
    temporary = temporary_path(path.parent)
    try:
        write(temporary)
        if durable:
            sync(temporary)
        temporary.chmod(0o666 & ~current_umask())  # some writers make files that only their owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def atomic_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Call fill(temporary folder), then move the result to `path`; a folder there is removed after that."""
    temporary = temporary_path(path.parent)
    try:
        temporary.mkdir()
        fill(temporary)
        for folder, _, files in os.walk(temporary):
            for name in (*files, "."):
                sync(os.path.join(folder, name))
        if path.is_dir():
            _exchange(temporary, path)
        else:
            temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: str | Path) -> None:
    """Flush a file or folder to the disk."""
    if os.path.isdir(path) and os.name != "posix":      # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def current_umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders: in one step where the system can, else in two."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    names = (os.fsencode(new), os.fsencode(old))
    if swap is not None and swap(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    aside = new.with_suffix(".old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
