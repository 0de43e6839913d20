"""UniPC: a multistep predictor whose corrector needs no further evaluation (arXiv 2302.04867, section 3).

On the clean latents, with h = lambda' - lambda, u = -h and m_k the predicted x_0 of the last p steps, newest
first:

    D_k = (m_k - m_0) / r_k,    r_k = (lambda_k - lambda) / h                            k = 1 .. p - 1
    x'  = (sigma' / sigma) x - alpha' (e^u - 1) m_0 - alpha' B sum_k rho_k D_k           UniP-p
    sum_k rho_k r_k^(j - 1) = j! u phi_{j+1}(u) / B,    B = e^u - 1 (bh2) or u (bh1)     j = 1 .. p - 1

The next step evaluates the UNet at x'. Its prediction is added as D_p with r_p = 1, and x' is replaced by the
result of the same formula (UniC-p). The predictor is of order p, the pair of order p + 1. Here the difference
of the two results is added to x', so that latents kept by a mask stay in x'.
"""

import math
from typing import Any

import numpy as np
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.samplers.base import GridSampler, Model, Noise

B = {"bh1": lambda u: u, "bh2": math.expm1}


class UniPC(GridSampler):
    """One evaluation per step; deterministic; third order, or fourth with `order` 3."""

    default_spacing = "karras"

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,
        *,
        order: int = 2,  # of the predictor, 1 to 3; 2 is more stable with guidance
        variant: str = "bh2",  # or bh1
        **options: Any,
    ):
        if order not in (1, 2, 3):
            raise InputError(f"UniPC of order {order!r}: expected 1, 2 or 3")
        if variant not in B:
            raise InputError(f"unknown UniPC variant {variant!r}: expected {' or '.join(B)}")
        super().__init__(schedule, num_steps, **options)
        self.order = order
        self.variant = variant

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        """Correct x_t, take step `i` and return (x_t at the next node, x_0)."""
        prediction = self.predict(i, x_t, denoise)
        x_0 = prediction.x_0
        if i == len(self) - 1:
            return x_0, x_0
        if self.nodes.alphas[i] == 0:  # pure noise is infinitely far from the next node, so it is not kept
            return self.straight(i, prediction), x_0
        if self.memory:
            x_t = x_t + self._bend(i - 1, x_0) - self._bend(i - 1)
        self.memory = [x_0, *self.memory[: self.order - 1]]
        h = self.nodes.lambdas[i + 1] - self.nodes.lambdas[i]
        ratio = self.nodes.sigmas[i + 1] / self.nodes.sigmas[i]
        return ratio * x_t - self.nodes.alphas[i + 1] * math.expm1(-h) * x_0 + self._bend(i), x_0

    def _bend(self, i: int, ahead: Tensor | None = None) -> Tensor | float:
        """Return -alpha' B sum rho D of step `i` from the memory, and from the prediction at its end."""
        lambdas = self.nodes.lambdas
        h = lambdas[i + 1] - lambdas[i]
        newest, *earlier = self.memory
        earlier = earlier[: len(self) - 1 - i]  # lower order towards the end
        r = [(lambdas[i - k] - lambdas[i]) / h for k in range(1, len(earlier) + 1)]
        if ahead is not None:
            r, earlier = [*r, 1.0], [*earlier, ahead]
        if not r:
            return 0.0
        scale = -self.nodes.alphas[i + 1] * B[self.variant](-h)
        weights = zip(self._rho(r, -h), r, earlier, strict=True)
        return scale * sum(rho / r_k * (m - newest) for rho, r_k, m in weights)

    def _rho(self, r: list[float], u: float) -> list[float]:
        """Solve the equations at the top of this file; a single rho is 1/2 for any h."""
        if len(r) == 1:
            return [0.5]
        phi, right = math.expm1(u) / u, []
        for j in range(1, len(r) + 1):
            phi = (phi - 1 / math.factorial(j)) / u  # phi_{j+1}
            right.append(math.factorial(j) * u * phi / B[self.variant](u))
        return np.linalg.solve(np.vander(r, increasing=True).T, right).tolist()
