"""Linear multistep in sigma_karras (Adams-Bashforth on uneven steps, order 4; k-diffusion's "LMS").

    x' / alpha' = x / alpha + sum_j w_j eps_{i-j},    w_j = integral from s_i to s_{i+1} of L_j(s) ds

L_j is the Lagrange polynomial through the sigmas of the last steps that is 1 at that of step i - j.
"""

import numpy as np
from torch import Tensor

from ldm.samplers.base import GridSampler, Model, Noise

ORDER = 4


class LMS(GridSampler):
    """One evaluation a step; deterministic; fourth order once three steps are behind it."""

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        """Take step `i` and return (x_t at the next node, x_0)."""
        x_0, eps = self.predict(i, x_t, denoise)
        self.memory = [eps, *self.memory[: ORDER - 1]]
        x_hat = x_t / self.nodes.alphas[i]
        for weight, earlier in zip(self._weights(i, len(self.memory)), self.memory, strict=True):
            x_hat = x_hat + weight * earlier
        return self.nodes.alphas[i + 1] * x_hat, x_0

    def _weights(self, i: int, order: int) -> list[float]:
        """Integrate the Lagrange polynomials of the last `order` steps over step `i`, exactly."""
        known = [self.nodes.sigma_karras(i - j) for j in range(order)]
        ends = [self.nodes.sigma_karras(i), self.nodes.sigma_karras(i + 1)]
        weights = []
        for j, own in enumerate(known):
            others = [s for k, s in enumerate(known) if k != j]
            polynomial = np.poly1d(others, r=True) / np.prod([own - s for s in others])
            before, after = np.polyint(polynomial)(ends)
            weights.append(float(after - before))
        return weights
