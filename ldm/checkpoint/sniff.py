"""Tell what a file is from its first bytes: names lie, and libraries answer a web page with riddles."""

import enum
import logging
import re
from pathlib import Path

from ldm.checkpoint.globals_in_pickle import globals_in_pickle
from ldm.errors import CheckpointError, UnsafeCheckpointError

logger = logging.getLogger(__name__)


class Container(enum.Enum):
    """How tensors are packed in a file."""

    SAFETENSORS = "safetensors"
    ZIP = "a zip-format checkpoint"
    PICKLE = "an old-format checkpoint"
    FOLDER = "a folder"


# what the first bytes are -> what the file is
FOREIGN = {
    b"GGUF": "a GGUF file; this program reads .ckpt and .safetensors",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x89PNG": "a PNG picture, not weights",
    b"\xff\xd8\xff": "a JPEG picture, not weights",
    b"\x89HDF": "an HDF5 file; this program reads .ckpt and .safetensors",
}


def sniff(path: Path) -> Container:
    """Return the container of `path`.

    Raises:
        CheckpointError: missing, not a file, empty, or none of the containers; the text says what it is.
    """
    if path.is_dir():
        return Container.FOLDER
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file; give a .ckpt or .safetensors file")
    if not path.is_file():
        raise CheckpointError(f"{path}: is not a regular file; give a .ckpt or .safetensors file")
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    container = _container(head)
    if container is None:
        raise _what_else(path, head)
    if (container is Container.SAFETENSORS) != (path.suffix.lower() == ".safetensors"):
        logger.info("%s is %s in spite of its name", path.name, container.value)
    return container


def _container(head: bytes) -> Container | None:
    if head.startswith(b"PK\x03\x04"):
        return Container.ZIP
    if head[8:9] == b"{":                           # behind the header's length in 8 bytes
        return Container.SAFETENSORS
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":    # opcode PROTO and its argument
        return Container.PICKLE
    return None


def _what_else(path: Path, head: bytes) -> CheckpointError:
    """Return the error for a file that is no container."""
    size = path.stat().st_size
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not size:
        return CheckpointError(f"{path}: is empty; download it again")
    if text.startswith(b"version https://git-lfs"):
        real = re.search(rb"size (\d+)", head)
        real_size = f" of {int(real[1]) / 1e9:.2f} GB" if real else ""
        return CheckpointError(f"{path}: is a git-lfs pointer, not the file{real_size}; run 'git lfs pull'")
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return CheckpointError(f"{path}: is an HTML page, not weights; the download failed or needs a log-in")
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            return CheckpointError(f"{path}: is {what}")
    if text.startswith(b"{"):
        return CheckpointError(f"{path}: is JSON text, not weights; give a .ckpt or .safetensors file")
    names = _globals_of_bare_pickle(path)
    if names:
        named = ", ".join(sorted(names)[:5])
        return UnsafeCheckpointError(f"{path}: refused, a pickle that names {named}; nothing was executed")
    return CheckpointError(
        f"{path}: is no checkpoint ({size} bytes, beginning {head[:8]!r}); give a .ckpt or .safetensors file"
    )


def _globals_of_bare_pickle(path: Path) -> set[str]:
    """Return what a pickle without a protocol mark (protocols 0 and 1) would import, if it is one."""
    try:
        with path.open("rb") as file:
            return globals_in_pickle(file)
    except Exception:       # not a pickle at all
        return set()
