"""Keep the tensors of what a file held, and accept only plain ones; look whether their values are numbers."""

import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint.identity import how_to_export
from ldm.checkpoint.sniff import shown
from ldm.checkpoint.stored import PLAIN
from ldm.errors import NotACheckpointError

ACCEPTED = {getattr(torch, name) for name in PLAIN}


def only_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors of `content`, from its `state_dict` where it has one.

    Raises:
        NotACheckpointError: it holds none, or one that is sparse, quantized or complex.
    """
    if not isinstance(content, dict):
        raise NotACheckpointError(f"{path}: holds a {type(content).__name__}, expected named tensors")
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    tensors = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if not isinstance(name, str):
            raise NotACheckpointError(f"{path}: a tensor is named {reprlib.repr(name)}; names must be text")
        tensors[name] = _plain(name, value, path)
    if not tensors and "trained" in content:
        raise NotACheckpointError(f"{path}: is the state of a training run, no model; {how_to_export(path)}")
    if not tensors:
        keys = ", ".join(reprlib.repr(key) for key in list(content)[:5]) or "nothing"
        raise NotACheckpointError(f"{path}: holds no weights, only {keys}; expected a dict of named tensors")
    return tensors


def _plain(name: str, tensor: Tensor, path: Path) -> Tensor:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise NotACheckpointError(f"{path}: {shown(name)} is not dense; only dense weights can be read")
    if tensor.dtype not in ACCEPTED:
        raise NotACheckpointError(f"{path}: {shown(name)} is {tensor.dtype}; that cannot be read")
    return tensor.detach()


def is_finite(tensor: Tensor) -> bool:
    """Look at every value in one pass: a NaN or an infinity survives the sum, which itself may overflow."""
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())
