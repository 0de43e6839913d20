"""Write .safetensors one tensor at a time: 8 bytes of header length, a JSON header, the tensors without gaps.

The library's own writer wants all tensors in memory at once. Here an entry says what its tensor will be, and
is asked for it when its turn comes, so that a 5 GB file is converted or merged in the memory of one tensor.
The header is padded to 8 bytes and wide elements come first, so every tensor starts at a multiple of its
element size and can be used where it is mapped. The header keeps the order in which entries were given.
"""

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ldm.checkpoint.stored import DTYPES
from ldm.errors import InputError
from ldm.files.atomic import atomic_write

ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: what it is, and how to get it when its turn has come."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: str | Path,
    entries: Iterable[Entry],
    metadata: dict[str, str],
    *,
    progress: Callable[[int, int], None] | None = None,
    sources: Iterable[str | Path] = (),
) -> None:
    """Write `entries` to `path`: the whole new file appears there, or what was there stays.

    The peak memory is one tensor.

    Args:
        metadata: text by name, kept in the header.
        progress: called as progress(bytes done, bytes in all) after each tensor.
        sources: the files that entries read from; none of them may be `path`.

    Raises:
        InputError: `path` is one of the sources, a folder, or in a folder that does not exist.
        OSError: ENOSPC before a byte is written if the disk has not the room, or whatever the disk says.
    """
    path = Path(path)
    entries = list(entries)
    _check_target(path, sources)
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header = _header(entries, ordered, metadata)
    total = sum(entry.nbytes for entry in entries)
    _check_space(path, len(header) + total)

    def write(temporary: Path) -> None:
        done = 0
        with temporary.open("xb") as file:
            file.write(header)
            for entry in ordered:
                _write_tensor(file, entry)
                done += entry.nbytes
                if progress is not None:
                    progress(done, total)

    atomic_write(path, write)


def _check_target(path: Path, sources: Iterable[str | Path]) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected the name of the file to write")
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    for source in sources:
        if path.exists() and os.path.exists(source) and os.path.samefile(path, source):
            raise InputError(f"{path} is also read from; give the result another name")


def _check_space(path: Path, needed: int) -> None:
    disk = shutil.disk_usage(path.parent)
    if not disk.total:
        raise InputError(f"{path}: {path.parent} is on no disk; write to another folder")
    if needed > disk.free:
        raise OSError(
            errno.ENOSPC, f"disk full: {needed} bytes are needed and {disk.free} are free", str(path)
        )


def _header(entries: list[Entry], ordered: list[Entry], metadata: dict[str, str]) -> bytes:
    """Return the length and the JSON text, padded with spaces so that the tensors start aligned."""
    offsets, end = {}, 0
    for entry in ordered:
        if entry.name in offsets or entry.name == "__metadata__":
            raise ValueError(f"two tensors are named {entry.name!r}, or it is a reserved name")
        offsets[entry.name] = [end, end + entry.nbytes]
        end += entry.nbytes
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError(f"metadata must be text by name, got {metadata!r:.100}")
    content: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    for entry in entries:
        content[entry.name] = {
            "dtype": DTYPES[str(entry.dtype).removeprefix("torch.")][0],
            "shape": list(entry.shape),
            "data_offsets": offsets[entry.name],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, entry: Entry) -> None:
    tensor = entry.load()
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != tuple(entry.shape):
        raise ValueError(
            f"{entry.name}: announced as {entry.dtype} {tuple(entry.shape)}, "
            f"got {tensor.dtype} {tuple(tensor.shape)}"
        )
    plain = tensor.detach().to("cpu").contiguous()
    if plain.numel():
        file.write(memoryview(plain.reshape(-1).view(torch.uint8).numpy()))
