"""Find, in the first steps, a tensor that training does not reach.

A run that trains nothing looks healthy for hours. So each trainable tensor must, within a few optimizer steps,
have had a finite gradient that is not all zero, and must have changed. The first step alone cannot tell: layers
that start at zero give everything before them a zero gradient until they have moved.
"""

import torch
from torch import Tensor

from ldm.errors import TrainingError


class SelfCheck:
    """Watches named parameters over at most `steps` optimizer steps.

    Args:
        parameters: name -> trainable parameter.
        allow: part of a name -> reason why such a tensor may rest.
    """

    def __init__(self, parameters: dict[str, Tensor], steps: int, allow: dict[str, str] | None = None) -> None:
        self.steps_left = steps
        waived = [name for name in parameters if any(part in name for part in (allow or {}))]
        pending = {name: p for name, p in parameters.items() if name not in waived} if steps > 0 else {}
        self.pending = pending
        self.start = {name: p.detach().clone() for name, p in pending.items()}
        self.had_gradient: set[str] = set()

    @property
    def done(self) -> bool:
        return not self.pending

    def before_step(self) -> None:
        """Look at the gradients, after backward and before the optimizer."""
        for name, parameter in self.pending.items():
            if parameter.grad is None or name in self.had_gradient:
                continue
            if not torch.isfinite(parameter.grad).all():
                raise TrainingError(f"{name}: its gradient is not finite; lower train.learning_rate, or use float32")
            if bool(parameter.grad.any()):
                self.had_gradient.add(name)

    def after_step(self, learning_rate: float) -> None:
        """Look at the weights after the optimizer; raise when the last allowed step has left one behind.

        Raises:
            TrainingError: names the tensors without a gradient, and those that did not move.
        """
        moved = [
            name for name, p in self.pending.items()
            if name in self.had_gradient and not torch.equal(p.detach(), self.start[name])
        ]
        for name in moved:
            del self.pending[name], self.start[name]
        self.steps_left -= 1
        if self.steps_left > 0 or not self.pending:
            return
        no_gradient = [name for name in self.pending if name not in self.had_gradient]
        if no_gradient:
            raise TrainingError(
                f"{named(no_gradient)}: no gradient reaches it; detach it from the optimizer, or name it with a "
                "reason in train.self_check_allow"
            )
        # During warm-up a step can be smaller than half the spacing of float32 numbers: then wait on.
        resting = [name for name, p in self.pending.items() if learning_rate > 1e-6 * float(p.detach().abs().max())]
        if resting:
            raise TrainingError(f"{named(resting)}: has a gradient but does not move; check train.learning_rate")


def named(names: list[str]) -> str:
    """Return the first few names and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
