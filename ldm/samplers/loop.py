"""The one sampling loop.

The loop yields after every step, so progress bars, previews, cancelling and checks for NaN belong to
whoever iterates.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ldm.diffusion.prediction import Denoise, add_noise
from ldm.errors import InputError
from ldm.samplers.base import Noise, Sampler, batch_of


class Step(NamedTuple):
    """What one step gave."""

    i: int
    """index of the step, 0 for the noisiest, also where the loop started later"""
    t: float
    """the training time that the network was asked at"""
    x_t: Tensor
    """(b, c, h, w) latents after the step"""
    x_0: Tensor
    """(b, c, h, w) the clean latents that the step aimed at"""


def gaussian(x: Tensor) -> Tensor:
    """Draw standard normal numbers in the shape of `x` from its device's default generator.

    Unlike `randn_like` the order of the numbers does not depend on the memory layout of `x`.
    """
    return torch.randn(x.shape, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


class KeyedNoise(Protocol):
    """A source that tells its draws apart, so that a sample does not depend on what was drawn before."""

    def at(self, i: int, purpose: str) -> Noise:
        """Return the noise of step `i`; purpose is "step" (the sampler's own) or "keep" (the masked part)."""


def _noise_at(source: Noise | KeyedNoise, i: int, purpose: str) -> Noise:
    return source.at(i, purpose) if hasattr(source, "at") else source


@torch.no_grad()
def sample_loop(
    sampler: Sampler,
    denoise: Denoise,
    x_t: Tensor,
    cond: Any,
    *,
    noise: Noise | KeyedNoise = gaussian,
    start: int = 0,
    memory: Sequence[Tensor] = (),
    keep_mask: Tensor | None = None,
    keep_x_0: Tensor | None = None,
    keep_noise: Tensor | None = None,
) -> Iterator[Step]:
    """Run a sampler from step `start` to its end and yield every step.

    `noise` is called once in each place where the published samplers draw, in their order, so a seed gives
    the published picture.

    Args:
        x_t: (b, c, h, w) latents at the noise of step `start`.
        memory: the sampler's memory before step `start`, to go on exactly where an earlier run stopped.
        keep_mask: 1 where `keep_x_0` is to stay, broadcastable to x_t. Before every step the kept part is
            replaced by `keep_x_0` at that step's noise; the last step's result is left as it is.
        keep_noise: the noise of the kept part; drawn anew before every step when None.

    Raises:
        InputError: `keep_mask` comes without `keep_x_0`, or `start` is not a step.
    """
    if (keep_mask is None) != (keep_x_0 is None):
        raise InputError("a mask needs the latents to keep where it is 1, and those need a mask")
    if not 0 <= start <= len(sampler):
        raise InputError(f"cannot start at step {start} of {len(sampler)}")
    if keep_mask is not None:
        keep_mask = keep_mask.to(keep_x_0.dtype)  # a boolean mask too
    sampler.reset(memory)
    for i in range(start, len(sampler)):
        t = sampler.timesteps[i]
        if keep_mask is not None:
            eps = _noise_at(noise, i, "keep")(keep_x_0) if keep_noise is None else keep_noise
            kept = add_noise(sampler.schedule, keep_x_0, eps, batch_of(t, keep_x_0))
            x_t = keep_mask * kept + (1 - keep_mask) * x_t
        x_t, x_0 = sampler.step(i, x_t, lambda x, t: denoise(x, t, cond), _noise_at(noise, i, "step"))
        yield Step(i, t, x_t, x_0)
