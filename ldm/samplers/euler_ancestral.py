"""Euler steps below the next noise level, with new noise added on top (k-diffusion's "ancestral" sampling).

In units of sigma_karras, from s to s':

    up^2 = eta^2 s'^2 (s^2 - s'^2) / s^2,     down^2 = s'^2 - up^2          (DDPM's posterior at eta 1)
    x'   = alpha' (x_0 + down eps + up n)
"""

import math

from torch import Tensor

from ldm.samplers.base import GridSampler, Model, Noise


class EulerAncestral(GridSampler):
    """One evaluation per step; adds noise, so it does not converge: more steps give a different image."""

    default_eta = 1.0

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        x_0, eps = self.predict(i, x_t, denoise)
        here, there = self.nodes.sigma_karras(i), self.nodes.sigma_karras(i + 1)
        up = min(there, self.eta * there * math.sqrt(1 - (there / here) ** 2))
        down = math.sqrt(there**2 - up**2)
        x_hat = x_0 + down * eps
        if up > 0:
            x_hat = x_hat + up * noise(x_t)
        return self.nodes.alphas[i + 1] * x_hat, x_0
