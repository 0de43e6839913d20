"""Find, in the first steps, a tensor that training does not reach.

A run that trains nothing looks healthy for hours. So each trainable tensor must, within a few optimizer
steps, have had a gradient that is finite and not all zero, and must then have changed. The first step alone
cannot tell: layers that start at zero give everything before them a zero gradient until they have moved. And
behind such layers the gradients of a warm-up are at first so small that a weight cannot follow in float32:
moving gets more time.
"""

import torch
from torch import Tensor

from ldm.errors import TrainingError
from ldm.wording import counted

PATIENCE = 40  # a tensor has this many times longer to move than to get a gradient


class SelfCheck:
    """Watches named parameters until each has had a gradient and moved.

    Args:
        parameters: name -> trainable parameter.
        steps: optimizer steps within which a gradient must come; 0: no check.
        allow: part of a name -> reason why such a tensor may rest.
    """

    def __init__(
        self, parameters: dict[str, Tensor], steps: int, allow: dict[str, str] | None = None
    ) -> None:
        watched = parameters if steps > 0 else {}
        self.pending = {
            name: p for name, p in watched.items() if not any(part in name for part in (allow or {}))
        }
        self.start = {name: p.detach().clone() for name, p in self.pending.items()}
        self.steps = steps
        self.taken = 0
        self.had_gradient: set[str] = set()

    @property
    def done(self) -> bool:
        return not self.pending

    def before_step(self) -> None:
        """Look at the gradients, after backward and before the optimizer.

        Raises:
            TrainingError: one is not finite.
        """
        for name, parameter in self.pending.items():
            if parameter.grad is None or name in self.had_gradient:
                continue
            if not torch.isfinite(parameter.grad).all():
                raise TrainingError(f"{name}: its gradient is not finite; lower train.learning_rate")
            if bool(parameter.grad.any()):
                self.had_gradient.add(name)

    def after_step(self) -> None:
        """Look at the weights after the optimizer.

        Raises:
            TrainingError: names the tensors that no gradient has reached, or that did not move, in time.
        """
        for name in self.had_gradient & set(self.pending):
            if not torch.equal(self.pending[name].detach(), self.start[name]):
                del self.pending[name], self.start[name]
        self.taken += 1
        no_gradient = [name for name in self.pending if name not in self.had_gradient]
        if self.taken >= self.steps and no_gradient:
            raise TrainingError(
                f"{named(no_gradient)}: no gradient reaches it in {counted(self.taken, 'step')}; freeze it, "
                "or name it with a reason in train.self_check_allow"
            )
        if self.taken >= self.steps * PATIENCE and self.pending:
            raise TrainingError(
                f"{named(list(self.pending))}: has a gradient but has not moved in "
                f"{counted(self.taken, 'step')}; raise train.learning_rate"
            )


def named(names: list[str]) -> str:
    """Return the first few names and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
