"""DDPM's ancestral sampling (arXiv 2006.11239, algorithm 2).

    x_{t-1} ~ q(x_{t-1} | x_t, x_0),   t = T-1 .. 0, without noise in the last step

It visits every training time; DDIM with eta 1 is its strided form.
"""

from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.samplers.base import Model, Noise, Sampler, batch_of


class DDPM(Sampler):
    """One evaluation for each of the last `num_steps` training times, all of them by default."""

    def __init__(self, schedule: Schedule, num_steps: int | None = None, *, clip_denoised: bool = False):
        num_steps = schedule.num_timesteps if num_steps is None else num_steps
        if not 1 <= num_steps <= schedule.num_timesteps:
            raise InputError(f"{num_steps} steps: the model was trained with 1 to {schedule.num_timesteps}")
        super().__init__(schedule, range(num_steps - 1, -1, -1))
        self.clip_denoised = clip_denoised  # to [-1, 1], for models of pixels

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        """Take step `i` and return (x_prev, x_0)."""
        t = batch_of(self.timesteps[i], x_t)
        x_0 = denoise(x_t, t).x_0
        x_0 = x_0.clamp(-1, 1) if self.clip_denoised else x_0
        mean, _, log_variance = self.schedule.posterior(x_0, x_t, t)
        n = noise(x_t)  # drawn in the last step too, as published
        if self.timesteps[i] == 0:
            return mean, x_0
        return mean + (0.5 * log_variance).exp() * n, x_0
