"""Write checkpoint files byte by byte, so that tests can make those that no library would write."""

import io
import json
import pickle
import struct
import sys
import types
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint.opened import open_weights
from ldm.checkpoint.writer import Entry

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LAST_OF_STORAGE = b"tQ"         # the end of a reference to data; the old format has a None before it


def call(module: str, name: str, argument: str, protocol: int = 2) -> bytes:
    """Return the opcodes of `module.name(argument)`, without PROTO and STOP."""
    if protocol >= 4:
        return _short_text(module) + _short_text(name) + b"\x93" + _short_text(argument) + b"\x85R"
    text = argument.encode()
    return f"c{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R"


def is_mapped(tensor: Tensor) -> bool:
    """Tell whether `tensor` lies in a mapped file: only own memory can be resized."""
    return not tensor.untyped_storage().resizable()


def _short_text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def tensor(numel: int, size: int, stride: int = 1, offset: int = 0) -> bytes:
    """Return the opcodes of a float32 vector over data "0" of `numel` values, true or not."""
    number = struct.Struct("<i").pack
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ" + number(numel) + LAST_OF_STORAGE + b"J" + number(offset)
        + b"J" + number(size) + b"\x85J" + number(stride) + b"\x85\x89ccollections\nOrderedDict\n)RtR"
    )


def zip_with(
    pickled: bytes,
    path: Path,
    members: dict[str, bytes] | None = None,
    packing: int = 0,
    order: str = "little",
) -> Path:
    """Write a zip-format checkpoint around `pickled`."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", order)
        for name, content in (members or {}).items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/version", "3\n")
    return path


def legacy_with(pickled: bytes, path: Path, data: tuple[tuple[str, bytes], ...] = ()) -> Path:
    """Write an old-format checkpoint around `pickled`."""
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    head = b"".join(pickle.dumps(value, protocol=2) for value in (LEGACY_MAGIC, 1001, system))
    keys = pickle.dumps([key for key, _ in data], protocol=2)
    blocks = b"".join(struct.pack("<q", len(content) // 4) + content for _, content in data)
    path.write_bytes(head + pickled.replace(LAST_OF_STORAGE, b"NtQ") + keys + blocks)
    return path


def safetensors_with(header: dict | bytes, data: bytes, path: Path) -> Path:
    """Write a .safetensors file with this header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def saved(content: object, **kwargs) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


@contextmanager
def pretended_class(dotted: str, base: type = object):
    """Make an importable class of this dotted name for the duration, so that pickle can refer to it."""
    module, _, name = dotted.rpartition(".")
    parts = module.split(".")
    paths = [".".join(parts[: n + 1]) for n in range(len(parts))]
    before = {path: sys.modules.get(path) for path in paths}
    for path in paths:
        sys.modules[path] = types.ModuleType(path)
    cls = type(name, (base,), {"__module__": module})
    setattr(sys.modules[module], name, cls)
    try:
        yield cls
    finally:
        for path, old in before.items():
            if old is None:
                del sys.modules[path]
            else:
                sys.modules[path] = old


def weights() -> dict[str, Tensor]:
    """Return a few small tensors of several dtypes."""
    return {
        "model.diffusion_model.a.weight": torch.arange(12.0).reshape(4, 3) / 7,
        "first_stage_model.b.bias": torch.arange(5).half(),
        "betas": torch.linspace(0.1, 0.9, 6).bfloat16(),
        "position_ids": torch.arange(7)[None],
        "logit_scale": torch.tensor(4.6),
        "nothing": torch.zeros(0, 3),
    }


def stored(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file under the names stored."""
    return open_weights(path).parts[""]


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    """Tell whether names, dtypes, shapes and bits agree."""
    return got.keys() == want.keys() and all(
        got[name].dtype == want[name].dtype and torch.equal(got[name], want[name]) for name in want
    )


def entry_of(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> Entry:
    """Return the entry that writes a tensor; floating point is cast to `dtype`."""
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return Entry(name, dtype, tuple(tensor.shape), lambda: tensor.to(dtype))
