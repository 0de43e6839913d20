"""The image files of a folder: which files count, and whether they can be read.

All are decoded once, in parallel, before anything else is done with them, so that no image stops a training
run hours later. The result is kept in the user's cache folder with the size and time of each file.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from ldm.errors import InputError
from ldm.files import cache
from ldm.files.atomic import atomic_write
from ldm.imaging.files import FORMATS, open_image, quietly
from ldm.wording import counted

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".dib", ".gif", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", *([".avif"] if "AVIF" in FORMATS else []),
)  # fmt: skip
NOT_READ = (
    ".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".xcf", ".kra", ".svg", ".svgz",
    ".eps", ".pdf", ".ai", ".tga", ".ico", ".icns", ".exr", ".hdr", ".dds", ".pcx", ".qoi", ".raw", ".dng",
    ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
)  # fmt: skip
# Copies and thumbnails that systems keep among the images, in folders that need not be hidden: macOS in zip
# files, Synology and QNAP, and the waste of disks.
NOT_OURS = (
    "__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"
)  # fmt: skip
THREADS = 8
NAMED = 20  # images in a message

log = logging.getLogger(__name__)


def image_files(folder: Path, say: bool = True) -> list[Path]:
    """Return the image files of a folder and those below it, sorted.

    Hidden files and folders, those of the system (`__MACOSX`, `@eaDir`, ...), what is no regular file, and
    empty files are left out and counted.

    Args:
        say: log what is left out.
    """
    files, left, endings = [], Counter(), Counter()
    for file in sorted(folder.rglob("*")):
        suffix = file.suffix.lower()
        if suffix not in (*SUFFIXES, *NOT_READ):
            continue
        parts = file.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            left["hidden"] += 1
        elif any(part.lower() in NOT_OURS for part in parts[:-1]):
            left["in system folders"] += 1
        elif not file.is_file():
            left["no regular file"] += 1
        elif not file.stat().st_size:
            left["empty"] += 1
        elif suffix not in SUFFIXES:
            endings[suffix] += 1
        else:
            files.append(file)
    if left and say:
        log.info("%s: left out %s", folder, ", ".join(f"{count} {what}" for what, count in left.items()))
    if endings and say:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in endings.most_common(8))
        log.warning("%s: left out %s, which cannot be read; convert them to PNG", folder, listed)
    return files


def unreadable(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """Return the images that cannot be read, each with the reason; every image is decoded, but only once.

    Raises: OutOfMemory.
    """
    place, known = _place(folder), {}
    try:
        known = {name: tuple(entry) for name, entry in json.loads(place.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        pass  # none yet, or damaged
    states = {file: _state(file) for file in files}
    names = {file: file.relative_to(folder).as_posix() for file in files}
    new = [file for file in files if known.get(names[file], ())[:-1] != states[file]]
    changed = set(new)
    if len(new) > 100:
        log.info("%s: checking %s, once", folder, counted(len(new), "image"))
    found = {name: known[name] for file, name in names.items() if name in known and file not in changed}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        try:
            for file, reason in zip(new, pool.map(_fault, new), strict=True):
                found[names[file]] = (*states[file], reason)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if new:
        _remember(place, found)
    return {file: found[name][-1] for file, name in names.items() if found[name][-1]}


def described(folder: Path, bad: dict[Path, str], count: int) -> str:
    """Return which of `count` images cannot be read, as one line of bounded length."""
    first = list(bad.items())[:NAMED]
    listed = [f"{file.relative_to(folder)} ({reason[:80]})"[:200] for file, reason in first]
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return f"{folder}: {len(bad)} of {counted(count, 'image')} cannot be read: {', '.join(listed)}{more}"


def _fault(file: Path) -> str:
    try:
        with quietly():
            open_image(file)
        return ""
    except InputError as error:
        return str(error).removeprefix(f"cannot open image {file}: ")


def _state(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


def _place(folder: Path) -> Path:
    key = sha256(os.fsencode(folder.resolve()) + b"1").hexdigest()  # 1: what counts as readable
    return cache.folder("images") / f"{key}.json"


def _remember(place: Path, found: dict[str, tuple]) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(place, lambda path: path.write_text(json.dumps(found)))
    except OSError as error:
        log.debug("%s: the check of the images is not kept: %s", place, error)
