"""DEIS: multistep on the predicted noise, polynomials in log sigma_karras (arXiv 2204.13902, eq. 14 and 15).

With s = sigma / alpha and u = log(s / s_i):

    x' / alpha' = x / alpha + sum_j w_j eps_{i-j},    w_j = integral from s_i to s_{i+1} of L_j(u) ds

L_j is the Lagrange polynomial in u through the last steps that is 1 at step i - j. As ds = s_i e^u du, the
integral is s_i [e^u (L - L' + L'' - ...)]. The last steps have lower order, because u ends at minus infinity.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.samplers.base import GridSampler, Model, Noise
from ldm.samplers.lms import lagrange


class DEIS(GridSampler):
    """One evaluation per step; deterministic; of a given order."""

    default_spacing = "karras"

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,
        *,
        order: int = 3,  # 1 to 4
        **options: Any,
    ):
        if order not in (1, 2, 3, 4):
            raise InputError(f"DEIS of order {order!r}: expected 1 to 4")
        super().__init__(schedule, num_steps, **options)
        self.order = order

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        prediction = self.predict(i, x_t, denoise)
        if self.nodes.alphas[i] > 0:  # pure noise has no finite log sigma_karras, so it is not kept
            self.memory = [prediction.eps, *self.memory[: self.order - 1]]
        order = min(len(self.memory), len(self) - i)
        if order < 2:
            return self.straight(i, prediction), prediction.x_0
        x_hat = x_t / self.nodes.alphas[i]
        for weight, eps in zip(self._weights(i, order), self.memory[:order], strict=True):
            x_hat = x_hat + weight * eps
        return self.nodes.alphas[i + 1] * x_hat, prediction.x_0

    def _weights(self, i: int, order: int) -> list[float]:
        """Integrate the Lagrange polynomials of the last `order` steps over step `i`, exactly."""
        s = self.nodes.sigma_karras
        u = math.log(s(i + 1) / s(i))
        weights = []
        for polynomial in lagrange([math.log(s(i - j) / s(i)) for j in range(order)]):
            antiderivative = sum((-1) ** k * np.polyder(polynomial, k) for k in range(order))
            weights.append(s(i) * float(math.exp(u) * antiderivative(u) - antiderivative(0.0)))
        return weights
