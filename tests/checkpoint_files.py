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

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def call(module: str, name: str, argument: str, protocol: int = 2) -> bytes:
    """Return the opcodes of `module.name(argument)`, without PROTO and STOP."""
    if protocol >= 4:
        return _short_text(module) + _short_text(name) + b"\x93" + _short_text(argument) + b"\x85R"
    text = argument.encode()
    return f"c{module}\n{name}\n".encode() + b"X" + struct.pack("<I", len(text)) + text + b"\x85R"


def _short_text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def zip_with(pickled: bytes, path: Path, members: dict[str, bytes] | None = None, packing: int = 0) -> Path:
    """Write a zip-format checkpoint around `pickled`."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for name, content in (members or {}).items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/version", "3\n")
    return path


def legacy_with(pickled: bytes, path: Path) -> Path:
    """Write an old-format checkpoint around `pickled`."""
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
    head = b"".join(pickle.dumps(value, protocol=2) for value in (LEGACY_MAGIC, 1001, system))
    path.write_bytes(head + pickled + pickle.dumps([], protocol=2))
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
def pretended_class(dotted: str):
    """Make an importable class of this dotted name for the duration, so that pickle can refer to it."""
    module, _, name = dotted.rpartition(".")
    parts = module.split(".")
    paths = [".".join(parts[: n + 1]) for n in range(len(parts))]
    before = {path: sys.modules.get(path) for path in paths}
    for path in paths:
        sys.modules[path] = types.ModuleType(path)
    cls = type(name, (), {"__module__": module})
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
