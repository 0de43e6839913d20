"""Fill one network from a weights file, before training."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ldm.checkpoint.opened import open_weights, published
from ldm.errors import ConfigError, WrongModelError
from ldm.loading import match


def load_part(
    part: nn.Module,
    path: str,
    prefix: str,
    grow_inputs: Sequence[str] = (),
    new_tensors: Mapping[str, str] | None = None,
) -> None:
    """Load a network from its own file, or from a complete checkpoint that holds it under `prefix`.

    Args:
        grow_inputs: names of weights (out, in, ...) that have more inputs here than in the file; the further
            ones start at zero, so that the network at first computes what it did without them.
        new_tensors: pattern of names that the file lacks -> "zero", or "drawn" to leave what was drawn.

    Raises:
        WrongModelError: the file does not fit.
        ConfigError: a name or pattern that fits nothing.
    """
    opened = open_weights(path)
    weights = _below(prefix, opened.parts.get("", {}))
    if grow_inputs or new_tensors:
        weights = grown(part, weights, grow_inputs) | started(part, weights, new_tensors or {})
    fit = match(part, weights)
    if not fit.is_good and (prefix or "" not in opened.parts):      # the names of another tool
        weights = _below(prefix, published(opened))
        fit = match(part, weights)
    if not fit.is_good:
        raise WrongModelError(f"{path} does not fit {type(part).__name__}: {fit.report()}")
    # Not strict, because `match` was; what it leaves out are the schedule's tables, which the model computes.
    part.load_state_dict({name: weights[name].float() for name in fit.matched}, strict=False)


def grown(part: nn.Module, weights: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return `weights` with zeros for the further inputs of the named tensors."""
    stored, result = part.state_dict(), dict(weights)
    for name in names:
        if name not in stored or name not in weights:
            raise ConfigError(f"diffusion.grow_inputs: {name} is not in both the model and the file")
        theirs, ours = weights[name].shape, stored[name].shape
        if len(ours) < 2 or theirs[0] != ours[0] or theirs[2:] != ours[2:] or theirs[1] >= ours[1]:
            raise ConfigError(f"diffusion.grow_inputs: {name} is {tuple(theirs)}, here {tuple(ours)}")
        result[name] = torch.zeros(ours)
        result[name][:, : theirs[1]] = weights[name]
    return result


def started(part: nn.Module, weights: dict[str, Tensor], new: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors that `weights` lack and a pattern fits, by the first that does."""
    lacking = {name: x for name, x in part.state_dict().items() if name not in weights}
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


def _below(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what is stored under `prefix`, or all where nothing is; not what only training used."""
    inside = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    return {k: x for k, x in (inside or weights).items() if not k.startswith(("loss.", "model_ema."))}
