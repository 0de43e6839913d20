"""Fill one network from a weights file, before training."""

from torch import nn

from ldm.checkpoint import load_checkpoint
from ldm.errors import WrongModelError
from ldm.loading import match


def load_part(part: nn.Module, path: str, prefix: str) -> None:
    """Load a network from its own file, or from a complete checkpoint that holds it under `prefix`."""
    weights = load_checkpoint(path)
    inside = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    weights = {k: v for k, v in (inside or weights).items() if not k.startswith(("loss.", "model_ema."))}
    fit = match(part, weights)
    if not fit.is_good:
        raise WrongModelError(f"{path} does not fit {type(part).__name__}: {fit.report()}")
    # Not strict, because `match` was; what it leaves out are the schedule's tables, which the model computes.
    part.load_state_dict({name: weights[name].float() for name in fit.matched}, strict=False)
