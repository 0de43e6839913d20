"""DDPM's ancestral sampling (arXiv 2006.11239, algorithm 2), over all training times or a subset.

    x' ~ q(x' | x_t, x_0) = N(m, v)                                          (eq. 6 and 7, from t to t')
    b = 1 - (alpha_t / alpha_t')^2,    v = b sigma_t'^2 / sigma_t^2
    m = alpha_t' b / sigma_t^2 x_0 + (alpha_t / alpha_t') sigma_t'^2 / sigma_t^2 x_t

The last step, to the clean latents, has v = 0. With all times this is the chain of the paper; with a subset
it equals DDIM at eta 1 and Euler ancestral, at other times.
"""

import math

from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.samplers.base import GridSampler, Model, Noise


class DDPM(GridSampler):
    """One evaluation per step; adds noise; needs many steps."""

    default_spacing = "trailing"

    def __init__(self, schedule: Schedule, num_steps: int | None = None, **options):
        """Use `num_steps` of the training times, all by default; options as in GridSampler."""
        super().__init__(schedule, schedule.num_timesteps if num_steps is None else num_steps, **options)

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        x_0, _ = self.predict(i, x_t, denoise)
        (alpha, alpha_next), (sigma, sigma_next) = self.nodes.alphas[i : i + 2], self.nodes.sigmas[i : i + 2]
        b = 1 - (alpha / alpha_next) ** 2
        mean = alpha_next * b / sigma**2 * x_0 + alpha / alpha_next * (sigma_next / sigma) ** 2 * x_t
        n = noise(x_t)  # drawn in the last step too, as in the reference
        return mean + math.sqrt(b) * sigma_next / sigma * n, x_0
