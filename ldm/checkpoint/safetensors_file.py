"""Read .safetensors: 8 bytes of header length, a JSON header, then the tensors without gaps.

The header is checked here, in whole and before the library sees it: a hostile one costs neither time nor
memory, and what the library lets through (names that stand there twice) is refused.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint.sniff import damaged
from ldm.checkpoint.stored import OF_SAFETENSORS, Stored
from ldm.errors import DamagedCheckpointError
from ldm.files.reading import name_in_utf8, reading

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 8_000_000
MAX_TENSORS = 20_000            # a training file with all of its copies has 4,000
JSON_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def read(path: Path) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Return all tensors, mapped from the file, and the metadata."""
    from safetensors import safe_open

    names, metadata = checked_header(path)
    with (
        reading(path, damaged(path)),
        name_in_utf8(path) as utf8,
        safe_open(utf8, framework="pt", device="cpu") as file,
    ):
        tensors = {name: file.get_tensor(name) for name in names}
    # Files of early writers are not padded, and not every kernel takes an odd address.
    aligned = {name: x.clone() if x.data_ptr() % x.element_size() else x for name, x in tensors.items()}
    return aligned, metadata


def checked_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors by name and the metadata; imports no torch.

    Raises:
        DamagedCheckpointError: truncated, too long, or a header that contradicts itself or the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise DamagedCheckpointError(
                f"{path}: its header claims {length} bytes, more than {MAX_HEADER_BYTES}; download it again"
            )
        if 8 + length > size:
            raise DamagedCheckpointError(f"{path}: is truncated in its header ({size} bytes); get it again")
        text = file.read(length)
    try:
        _check_extent(text)
        header = json.loads(text.decode(), object_pairs_hook=without_repeats)
        metadata = header.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is no text")
        end = _check_entries(header)
    except (AttributeError, ValueError, RecursionError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0][:100] if isinstance(error, ValueError) else "not of its form"
        raise DamagedCheckpointError(f"{path}: its header is damaged: {reason}; download it again") from error
    expected = 8 + length + end
    if size < expected:
        raise DamagedCheckpointError(f"{path}: is truncated: {size} of {expected} bytes; download it again")
    if size > expected:
        raise DamagedCheckpointError(f"{path}: has {size - expected} bytes behind its end; download it again")
    stored = {
        name: Stored(OF_SAFETENSORS[entry["dtype"]], tuple(entry["shape"])) for name, entry in header.items()
    }
    return stored, metadata


def _check_extent(text: bytes) -> None:
    """Refuse a header whose JSON would take much more memory than the tensors that it describes."""
    tensors = text.count(b'"data_offsets"')
    if tensors > MAX_TENSORS:
        raise ValueError(f"more than {MAX_TENSORS} tensors")
    if text.count(b'"') - text.count(b'\\"') > 12 * tensors + 40_000:
        raise ValueError("more texts than its tensors have")
    structure = JSON_TEXT.sub(b"", text)
    if structure.count(b"[") + structure.count(b"{") > 3 * tensors + 10:
        raise ValueError("more lists than its tensors have")
    if structure.count(b",") > 16 * tensors + 20_000:
        raise ValueError("more numbers than its tensors have")


def _check_entries(header: dict[str, Any]) -> int:
    """Check that the tensors lie one behind the other without gap or overlap; return where they end."""
    spans = []
    for name, entry in header.items():
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in OF_SAFETENSORS:
            raise ValueError(f"{name[:50]!r} has the unknown dtype {str(dtype)[:20]!r}")
        if not all(type(value) is int and 0 <= value < 2**63 for value in (*shape, start, end)):
            raise ValueError(f"{name[:50]!r} has a shape or place that is no row of counts")
        if end - start != Stored(OF_SAFETENSORS[dtype], shape).nbytes:
            raise ValueError(f"{name[:50]!r} has another size than its shape says")
        spans.append((start, end, name))
    covered = 0
    for start, end, name in sorted(spans):
        if start != covered:
            raise ValueError(f"{name[:50]!r} overlaps another tensor, or leaves a gap")
        covered = end
    return covered


def without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; a hook of `json.loads`. Raises: ValueError where a key stands there twice."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key[:50]!r} stands there twice")
        content[key] = value
    return content
