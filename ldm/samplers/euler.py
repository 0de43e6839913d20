"""Euler's method on the probability-flow ODE (arXiv 2206.00364, algorithm 1 without its correction).

    x / alpha -> x / alpha + (sigma_karras' - sigma_karras) eps,    hence    x' = alpha' x_0 + sigma' eps

This is DDIM at eta 0, except for the times and for the last step, which ends at the clean latents.
"""

from torch import Tensor

from ldm.samplers.base import GridSampler, Model, Noise


class Euler(GridSampler):
    """One evaluation per step; deterministic; first order."""

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        prediction = self.predict(i, x_t, denoise)
        return self.straight(i, prediction), prediction.x_0
