"""Keep NaN and infinity out of pictures."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SampleState:
    """Where sampling stands: all that is needed to go on exactly.

    `sample_loop(sampler, denoise, state.x_t, cond, start=state.step, memory=state.memory)` goes on.
    """

    step: int  # the next step to take; the number of steps when all are done
    x_t: Tensor  # (b, c, h, w) latents before that step
    memory: tuple[Tensor, ...] = ()  # the sampler's, before that step
