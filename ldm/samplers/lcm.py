"""LCM: sampling of latent consistency models in 1 to 8 steps (arXiv 2310.04378, section 4 and algorithm 3).

    f(x, t) = c_skip x + c_out x_0,    c_skip = d^2 / ((10 t)^2 + d^2),    c_out = 10 t / sqrt((10 t)^2 + d^2)
    x'      = alpha' f + sigma' n

with d = 1/2. f is the consistency function: x itself at t = 0 and nearly x_0 elsewhere. Only models and LoRAs
distilled for it give sharp images. They are trained at the 50 times 19, 39, .. 999; the steps use every
(50 / steps)th of these from the noisiest on, unless --schedule is given.
"""

import math

import numpy as np
from torch import Tensor

from ldm.errors import InputError
from ldm.samplers.base import GridSampler, Model, Noise

ORIGIN_STEPS = 50
SIGMA_DATA = 0.5
TIME_SCALE = 10.0


class LCM(GridSampler):
    """One evaluation per step; adds noise between steps; for distilled models."""

    default_spacing = "lcm"

    def times_for(self, spacing: str, num_steps: int) -> list[int] | list[float]:
        """Return the times of a spacing; "lcm" are the times at which consistency models are distilled."""
        if spacing != self.default_spacing:
            return super().times_for(spacing, num_steps)
        total = self.schedule.num_timesteps
        known = min(ORIGIN_STEPS, total)
        if not 1 <= num_steps <= known:
            raise InputError(f"{num_steps} LCM steps: expected 1 to {known}, or --schedule trailing")
        origin = np.arange(known, 0, -1) * (total // known) - 1
        return origin[np.arange(num_steps) * known // num_steps].tolist()

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        x_0, _ = self.predict(i, x_t, denoise)
        scaled = TIME_SCALE * self.timesteps[i]
        norm = math.hypot(scaled, SIGMA_DATA)
        x = (SIGMA_DATA / norm) ** 2 * x_t + scaled / norm * x_0
        if i == len(self) - 1:
            return x, x_0
        return self.nodes.alphas[i + 1] * x + self.nodes.sigmas[i + 1] * noise(x_t), x_0
