"""Put the tensors of a file in place, one after the other, and make those that it lacks."""

import logging
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint.tensors import is_finite
from ldm.errors import BadValuesError, ConfigError
from ldm.loading.match import EXAMPLES, KeyMatch, optional_buffers

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]       # (bytes done, total bytes)


def fill_in(
    model: nn.Module,
    keys: KeyMatch,
    weights: dict[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    file: Path,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Put the matched tensors in place and return their bytes; `weights` is empty afterwards.

    A tensor that needs no conversion stays mapped from the file if the model has no memory for it yet (meta
    device); a model that has keeps its own.

    Raises:
        BadValuesError: NaN or infinite weights.
    """
    kept = done = 0
    total = sum(weights[name].nbytes for name in keys.matched)
    spoilt = []
    tables = optional_buffers(model)               # like the schedule's, they stay in full precision
    for name in keys.matched:
        source = weights.pop(name)
        wanted = torch.float32 if name in tables else dtype
        placed = source.to(device, wanted if source.is_floating_point() else source.dtype).contiguous()
        if not is_finite(placed):
            spoilt.append(f"{name} ({int((~torch.isfinite(source)).sum())} of {source.numel()})")
        _place(model, name, placed)
        kept += placed.nbytes
        done += source.nbytes
        if progress is not None:
            progress(done, total)
    weights.clear()
    if spoilt:
        _report_nonfinite(spoilt, dtype, file, allow_nonfinite)
    stored = model.state_dict()
    for name in keys.zeros:
        _place(model, name, torch.zeros(stored[name].shape, dtype=dtype, device=device))
    for module in model.modules():
        if hasattr(module, "look_beside"):
            module.look_beside(file if file.is_dir() else file.parent)
        if hasattr(module, "materialise_buffers"):
            module.materialise_buffers(device)
    return kept


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    before = owner._parameters.get(leaf)
    if before is None:
        owner._buffers[leaf] = tensor
    elif before.is_meta:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        before.data.copy_(tensor)


def _report_nonfinite(spoilt: list[str], dtype: torch.dtype, file: Path, allow: bool) -> None:
    more = f" and {len(spoilt) - EXAMPLES} more" if len(spoilt) > EXAMPLES else ""
    text = f"{file}: NaN or infinite weights as {dtype} in {', '.join(spoilt[:EXAMPLES])}{more}"
    if not allow:
        raise BadValuesError(f"{text}; the file is damaged, or needs another --dtype")
    logger.warning("%s; loaded all the same", text)


def zero_pad_inputs(
    model: nn.Module, weights: Mapping[str, Tensor], names: Sequence[str]
) -> dict[str, Tensor]:
    """Return `weights`, with zeros for the additional inputs of the named tensors (out, in, ...)."""
    stored, result = model.state_dict(), dict(weights)
    for name in names:
        if name not in stored or name not in weights:
            raise ConfigError(f"diffusion.grow_inputs: {name} is not in both the model and the file")
        theirs, ours = weights[name].shape, stored[name].shape
        if len(ours) < 2 or theirs[0] != ours[0] or theirs[2:] != ours[2:] or theirs[1] >= ours[1]:
            raise ConfigError(f"diffusion.grow_inputs: {name} is {tuple(theirs)}, here {tuple(ours)}")
        result[name] = torch.zeros(ours)
        result[name][:, : theirs[1]] = weights[name]
    return result


def initialise_new(
    model: nn.Module, weights: Mapping[str, Tensor], new: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the tensors that `weights` lack and that fit a pattern of `new`: zeros, or as initialised."""
    lacking = {name: x for name, x in model.state_dict().items() if name not in weights}
    result, used = {}, set()
    for name, drawn in lacking.items():
        pattern = next((p for p in new if fnmatchcase(name, p)), None)
        if pattern is not None:
            used.add(pattern)
            result[name] = torch.zeros_like(drawn) if new[pattern] == "zero" else drawn
    for pattern, start in new.items():
        if start not in ("zero", "drawn"):
            raise ConfigError(f"diffusion.new_tensors: {pattern}: got {start!r}, expected zero or drawn")
        if pattern not in used:
            raise ConfigError(f"diffusion.new_tensors: {pattern} fits no tensor that the file lacks")
    return result
