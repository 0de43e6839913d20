"""The one sampling loop, and what a sampler must offer to run in it.

The loop yields after every step, so progress bars, previews, cancelling and checks for NaN belong to
whoever iterates.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.prediction import Denoise, Prediction, add_noise
from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError

Noise = Callable[[Tensor], Tensor]
"""Called with a tensor, returns standard normal numbers of its shape, dtype and device."""


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


class Sampler(Protocol):
    """One way from noise to latents, a step at a time."""

    schedule: Schedule
    timesteps: Sequence[float]
    """training times in the order of the steps; int or float is the dtype that the network gets"""

    def __len__(self) -> int: ...

    def reset(self) -> None:
        """Forget earlier steps; called before the first one."""

    def step(
        self, i: int, x_t: Tensor, denoise: Callable[[Tensor, Tensor], Prediction], noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Take step `i` and return (x_t after it, x_0)."""

    def start_index(self, t_enc: int) -> int:
        """Return the step from which `t_enc` steps are left."""

    def noised(self, x_0: Tensor, t_enc: int | Tensor, eps: Tensor) -> Tensor:
        """Carry clean latents to where `start_index(t_enc)` begins."""


def gaussian(x: Tensor) -> Tensor:
    """Draw standard normal numbers in the shape of `x` from its device's default generator.

    Unlike `randn_like` the order of the numbers does not depend on the memory layout of `x`.
    """
    return torch.randn(x.shape, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))


def batch_of(t: float, like: Tensor) -> Tensor:
    """Return one time for each sample of `like`: int64 for an int, float32 or wider for a float."""
    dtype = torch.int64 if isinstance(t, int) else torch.promote_types(like.dtype, torch.float32)
    return torch.full((len(like),), t, dtype=dtype, device=like.device)


@torch.no_grad()
def sample_loop(
    sampler: Sampler,
    denoise: Denoise,
    x_t: Tensor,
    cond: Conditioning,
    *,
    noise: Noise = gaussian,
    start: int = 0,
    keep_mask: Tensor | None = None,
    keep_x_0: Tensor | None = None,
    keep_noise: Tensor | None = None,
) -> Iterator[Step]:
    """Run a sampler from step `start` to its end and yield every step.

    `noise` is called once in each place where the published samplers draw, in their order, so a seed gives
    the published picture.

    Args:
        x_t: (b, c, h, w) latents at the noise of step `start`.
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
    sampler.reset()
    for i in range(start, len(sampler)):
        t = sampler.timesteps[i]
        if keep_mask is not None:
            eps = noise(keep_x_0) if keep_noise is None else keep_noise
            kept = add_noise(sampler.schedule, keep_x_0, eps, batch_of(t, keep_x_0))
            x_t = keep_mask * kept + (1 - keep_mask) * x_t
        x_t, x_0 = sampler.step(i, x_t, lambda x, t: denoise(x, t, cond), noise)
        yield Step(i, t, x_t, x_0)
