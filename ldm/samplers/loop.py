"""The sampling loop that all samplers share.

It is a generator that yields after every step, so the caller can show progress or previews, check for NaN, or
stop.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ldm.diffusion.prediction import Denoise, add_noise
from ldm.errors import InputError
from ldm.samplers.base import Noise, Sampler, batch_of


class Step(NamedTuple):
    """The result of one step."""

    i: int
    """index of the step; 0 is the noisiest, even if the loop started later"""
    t: float
    """the training time at which the UNet was evaluated"""
    x_t: Tensor
    """(b, c, h, w) latents after the step"""
    x_0: Tensor
    """(b, c, h, w) the predicted clean latents"""


def gaussian(x: Tensor) -> Tensor:
    """Draw standard normal noise in the shape of `x` from the default generator of its device.

    Unlike with `randn_like`, the order of the numbers does not depend on the memory layout of `x`.
    """
    return torch.randn(x.shape, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


class KeyedNoise(Protocol):
    """A source of noise addressed by step and purpose, so that a draw does not depend on earlier draws."""

    def at(self, i: int, purpose: str) -> Noise:
        """Return the noise of step `i` for "step" (added by the sampler) or "keep" (on the kept latents)."""


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

    `noise` is called in the same places and in the same order as in the reference samplers, so a seed gives
    the same image as there.

    Args:
        x_t: (b, c, h, w) latents at the noise level of step `start`.
        memory: the sampler's memory before step `start`, to resume an interrupted run exactly.
        keep_mask: 1 where `keep_x_0` is kept, broadcastable to x_t. Before every step the kept part is
            replaced by `keep_x_0` at the noise level of the step; the result of the last step is not changed.
        keep_noise: the noise of the kept part; None: new noise for every step.

    Raises:
        InputError: `keep_mask` and `keep_x_0` are not given together, or `start` is not a step.
    """
    if (keep_mask is None) != (keep_x_0 is None):
        raise InputError("keep_mask and keep_x_0 must be given together")
    if not 0 <= start <= len(sampler):
        raise InputError(f"cannot start at step {start} of {len(sampler)}")
    if keep_mask is not None:
        keep_mask = keep_mask.to(keep_x_0.dtype)  # it may be boolean
    sampler.reset(memory)
    for i in range(start, len(sampler)):
        t = sampler.timesteps[i]
        if keep_mask is not None:
            eps = _noise_at(noise, i, "keep")(keep_x_0) if keep_noise is None else keep_noise
            kept = add_noise(sampler.schedule, keep_x_0, eps, batch_of(t, keep_x_0))
            x_t = keep_mask * kept + (1 - keep_mask) * x_t
        x_t, x_0 = sampler.step(i, x_t, lambda x, t: denoise(x, t, cond), _noise_at(noise, i, "step"))
        yield Step(i, t, x_t, x_0)
