"""Tell what a file is from its first bytes: names lie, and libraries answer a web page with riddles."""

import enum
import io
import logging
import re
from collections.abc import Callable
from pathlib import Path

from ldm.checkpoint.globals_in_pickle import find_names
from ldm.errors import (
    CheckpointError,
    DamagedCheckpointError,
    NotACheckpointError,
    UnsafeCheckpointError,
)
from ldm.files.reading import no_file

logger = logging.getLogger(__name__)

MAX_BARE_PICKLE = 16_000_000


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
    b"\x89PNG": "a PNG image, not weights",
    b"\xff\xd8\xff": "a JPEG image, not weights",
    b"GIF8": "a GIF image, not weights",
    b"%PDF": "a PDF document, not weights",
    b"\x89HDF": "an HDF5 (Keras) file; this program reads .ckpt and .safetensors",
    b"\x93NUMPY": "a numpy array; this program reads .ckpt and .safetensors",
    b"ggml": "a GGML file; this program reads .ckpt and .safetensors",
    b"lmgg": "a GGML file; this program reads .ckpt and .safetensors",
    b"\xfd7zXZ": "compressed with xz; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"PK\x05\x06": "an empty zip archive, not weights",
    b"MZ": "a Windows program, not weights",
    b"\x7fELF": "a program, not weights",
}


def sniff(path: Path) -> Container:
    """Return the container of `path`.

    Raises:
        NotACheckpointError: none of the containers; the text says what it is.
        DamagedCheckpointError: empty.
        UnsafeCheckpointError: a bare pickle that names what it would run.
        CheckpointError: missing or unreadable.
    """
    if path.is_dir():
        return Container.FOLDER
    if what := no_file(path):
        is_there = path.exists()
        kind, what = (NotACheckpointError, what) if is_there else (CheckpointError, f"{what} or folder")
        raise kind(f"{path}: {what}; give a .ckpt or .safetensors file, or a diffusers folder")
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


def damaged(path: Path) -> Callable[[str], DamagedCheckpointError]:
    """Return what makes the error for bytes that a library refused, from its reason."""
    text = f"{path}: is truncated or damaged"
    return lambda reason: DamagedCheckpointError(f"{text} ({reason}); download it again")


def _container(head: bytes) -> Container | None:
    if head.startswith(b"PK\x03\x04"):
        return Container.ZIP
    if head[8:9] == b"{" and head[5:8] == bytes(3):     # behind the header's length in 8 bytes
        return Container.SAFETENSORS
    if head[257:262] == b"ustar":                   # before the pickle, which a tar's first name can feign
        return None
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":    # opcode PROTO and its argument
        return Container.PICKLE
    return None


def _what_else(path: Path, head: bytes) -> CheckpointError:
    """Return the error for a file that is no container."""
    size = path.stat().st_size
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not size:
        return DamagedCheckpointError(f"{path}: is empty; download it again")
    if text.startswith(b"version https://git-lfs"):
        real = re.search(rb"size (\d+)", head)
        real_size = f" of {int(real[1]) / 1e9:.2f} GB" if real else ""
        return NotACheckpointError(f"{path}: is a git-lfs pointer, not the file{real_size}; run git lfs pull")
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return NotACheckpointError(f"{path}: is an HTML page, not weights; the download failed")
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            return NotACheckpointError(f"{path}: is {what}")
    if text.startswith(b"{"):
        return NotACheckpointError(f"{path}: is JSON text, not weights; give a .ckpt or .safetensors file")
    if head[257:262] == b"ustar":
        return NotACheckpointError(f"{path}: is a tar archive; unpack it first")
    if _is_protobuf(head):
        return NotACheckpointError(
            f"{path}: looks like an ONNX or TensorFlow file; this program reads .ckpt and .safetensors"
        )
    names = _globals_of_bare_pickle(path)
    if names:
        named = ", ".join(shown(name) for name in sorted(names)[:5])
        return UnsafeCheckpointError(f"{path}: refused, a pickle that names {named}; nothing was executed")
    return NotACheckpointError(
        f"{path}: is no checkpoint ({size} bytes, beginning {head[:8]!r}); give a .ckpt or .safetensors file"
    )


def _is_protobuf(head: bytes) -> bool:
    """Tell whether a file begins like a model of ONNX (its version, its producer) or of TensorFlow."""
    return bool(re.match(rb"\x08[\x01-\x14]\x12.(pytorch|tf2onnx|onnx|keras|[a-z]+)", head, re.DOTALL)) or (
        head[:1] == b"\x0a" and any(word in head for word in (b"tensorflow", b"Placeholder", b"Const"))
    )


def shown(name: str) -> str:
    """Return a name out of a file as a message may show it: on one line, and not without end."""
    return name if name.isprintable() and len(name) <= 200 else repr(name[:200])


def _globals_of_bare_pickle(path: Path) -> set[str]:
    """Return what a pickle without a protocol mark (protocols 0 and 1) would import, if it is one."""
    names: set[str] = set()
    with path.open("rb") as file:
        find_names(io.BytesIO(file.read(MAX_BARE_PICKLE)), names)
    return {name for name in names if name.isprintable()}       # noise rarely is
