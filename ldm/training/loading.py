"""Fill one network from a weights file, before training."""

from torch import Tensor, nn

from ldm.checkpoint.opened import open_weights, published
from ldm.errors import WrongModelError
from ldm.loading import match


def load_part(part: nn.Module, path: str, prefix: str) -> None:
    """Load a network from its own file, or from a complete checkpoint that holds it under `prefix`."""
    opened = open_weights(path)
    weights = _below(prefix, opened.parts.get("", {}))
    fit = match(part, weights)
    if not fit.is_good and (prefix or "" not in opened.parts):      # the names of another tool
        weights = _below(prefix, published(opened))
        fit = match(part, weights)
    if not fit.is_good:
        raise WrongModelError(f"{path} does not fit {type(part).__name__}: {fit.report()}")
    # Not strict, because `match` was; what it leaves out are the schedule's tables, which the model computes.
    part.load_state_dict({name: weights[name].float() for name in fit.matched}, strict=False)


def _below(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what is stored under `prefix`, or all where nothing is; not what only training used."""
    inside = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    return {k: x for k, x in (inside or weights).items() if not k.startswith(("loss.", "model_ema."))}
