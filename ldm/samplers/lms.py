"""Linear multistep in sigma_karras (Adams-Bashforth on uneven steps, order 4; k-diffusion's "LMS").

    x' / alpha' = x / alpha + sum_j w_j eps_{i-j},    w_j = integral from s_i to s_{i+1} of L_j(s) ds

L_j is the Lagrange polynomial through the sigmas of the last steps that is 1 at step i - j. A step from pure
noise (zero terminal SNR), where sigma is infinite, is of first order and is not kept for later steps.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from ldm.samplers.base import GridSampler, Model, Noise

ORDER = 4


class LMS(GridSampler):
    """One evaluation per step; deterministic; fourth order from the fourth step on."""

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        prediction = self.predict(i, x_t, denoise)
        x_0, eps = prediction
        if self.nodes.alphas[i] == 0:
            return self.straight(i, prediction), x_0
        self.memory = [eps, *self.memory[: ORDER - 1]]
        x_hat = x_t / self.nodes.alphas[i]
        for weight, earlier in zip(self._weights(i, len(self.memory)), self.memory, strict=True):
            x_hat = x_hat + weight * earlier
        return self.nodes.alphas[i + 1] * x_hat, x_0

    def _weights(self, i: int, order: int) -> list[float]:
        """Integrate the Lagrange polynomials of the last `order` steps over step `i`, exactly."""
        ends = [self.nodes.sigma_karras(i), self.nodes.sigma_karras(i + 1)]
        polynomials = lagrange([self.nodes.sigma_karras(i - j) for j in range(order)])
        return [float(np.diff(np.polyint(polynomial)(ends))[0]) for polynomial in polynomials]


def lagrange(known: Sequence[float]) -> Iterator[np.poly1d]:
    """Yield, for each point of `known`, the polynomial that is 1 there and 0 at the others."""
    for j, own in enumerate(known):
        others = [x for k, x in enumerate(known) if k != j]
        yield np.poly1d(others, r=True) / np.prod([own - x for x in others])
