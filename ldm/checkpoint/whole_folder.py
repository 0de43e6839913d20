"""Folders that are whole or absent: filled under another name beside the target, then moved."""

import ctypes
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from ldm.checkpoint.whole_file import TEMPORARY_PREFIX

AT_FDCWD, RENAME_EXCHANGE = -100, 2     # of Linux's renameat2


def replace_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Call fill(temporary folder), then put the result under `path`; a folder there is removed after that.

    Whoever looks sees the old folder or the new one, whole. Only SIGKILL leaves a temporary one behind.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}.tmp"
    try:
        temporary.mkdir()
        fill(temporary)
        for folder, _, files in os.walk(temporary):
            for name in (*files, "."):
                _sync(os.path.join(folder, name))
        if path.is_dir():
            _exchange(temporary, path)
        else:
            temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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


def _sync(path: str | Path) -> None:
    if os.path.isdir(path) and os.name != "posix":      # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
