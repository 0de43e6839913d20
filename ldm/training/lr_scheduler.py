"""Learning rates as pure functions of where training is, so that nothing needs saving.

    warm-up   f = (step + 1) / warmup_steps
    cosine    f = f_end + (1 - f_end) * (1 + cos(pi * progress)) / 2          (arXiv 1608.03983, eq. 5)

`progress` runs from 0 to 1 over the steps or over the time limit. With the latter the rate reaches its end at
the deadline on any machine, but two runs are no longer equal bit for bit, because time is not.

`LambdaLinearScheduler` is what reference YAML files name under `scheduler_config`.
"""

import math
from collections.abc import Sequence


def learning_rate_factor(
    step: int, progress: float, *, schedule: str, warmup_steps: int = 0, final: float = 0.0
) -> float:
    """Return the factor on the base learning rate for the 0-based `step`."""
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    if schedule == "constant":
        return warm
    decay = final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return min(warm, decay) if warm < 1.0 else decay


class LambdaLinearScheduler:
    """Linear warm-up from f_start to f_max, then linear decay to f_min, in cycles of the given lengths."""

    def __init__(
        self,
        warm_up_steps: Sequence[int],
        f_min: Sequence[float],
        f_max: Sequence[float],
        f_start: Sequence[float],
        cycle_lengths: Sequence[int],
        verbosity_interval: int = 0,
    ) -> None:
        self.warm_up_steps, self.cycle_lengths = list(warm_up_steps), list(cycle_lengths)
        self.f_min, self.f_max, self.f_start = list(f_min), list(f_max), list(f_start)

    def schedule(self, n: int) -> float:
        """Return the factor at step n; past the last cycle, the last one continues."""
        cycle = 0
        while cycle < len(self.cycle_lengths) - 1 and n > self.cycle_lengths[cycle]:
            n -= self.cycle_lengths[cycle]
            cycle += 1
        warm, length = self.warm_up_steps[cycle], self.cycle_lengths[cycle]
        f_min, f_max, f_start = self.f_min[cycle], self.f_max[cycle], self.f_start[cycle]
        if n < warm:
            return (f_max - f_start) / warm * n + f_start
        return f_min + (f_max - f_min) * (length - n) / length

    __call__ = schedule
