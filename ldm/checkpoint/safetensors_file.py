"""Read .safetensors: 8 bytes of header length, a JSON header, then the tensors without gaps.

The library checks offsets and shapes; what it lets through or is slow at (huge headers, repeated names) is
checked here before it.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ldm.errors import CheckpointError

MAX_HEADER_BYTES = 16_000_000
MAX_TENSORS = 100_000


def read(path: Path) -> dict[str, Tensor]:
    """Return all tensors, mapped from the file."""
    names = _checked_header(path)
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in names}
    # Files of early writers are not padded, and not every kernel takes an odd address.
    return {name: x.clone() if x.data_ptr() % x.element_size() else x for name, x in tensors.items()}


def _checked_header(path: Path) -> list[str]:
    """Return the names of the tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path}: its header claims {length} bytes; at most {MAX_HEADER_BYTES}")
        if 8 + length > size:
            raise CheckpointError(f"{path}: is truncated in its header ({size} bytes); download it again")
        text = file.read(length)
        if text.count(b"data_offsets") > MAX_TENSORS:
            raise CheckpointError(f"{path}: has more than {MAX_TENSORS} tensors")
        try:
            header = json.loads(text, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its header is damaged: {str(error)[:100]}") from error
    header.pop("__metadata__", None)
    try:
        expected = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (TypeError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path}: its header is damaged; download it again") from error
    if size < expected:
        raise CheckpointError(f"{path}: is truncated: {size} of {expected} bytes; download it again")
    if size > expected:
        raise CheckpointError(f"{path}: has {size - expected} bytes behind its end; download it again")
    return list(header)


def _without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key!r} stands there twice")
        content[key] = value
    return content
