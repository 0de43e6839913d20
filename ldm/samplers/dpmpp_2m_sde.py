"""DPM++ 2M SDE: the second-order multistep of DPM-Solver++ on the reverse SDE (arXiv 2211.01095, appendix E).

With h = lambda' - lambda, k = (1 + eta) h, r = h_before / h and D = x_0 + (x_0 - x_0_before) / (2 r):

    x' = (sigma' / sigma) e^(-eta h) x + alpha' (1 - e^-k) D + sigma' sqrt(1 - e^(-2 eta h)) n

eta 0 is DPM++ 2M. The last step, to the clean latents, returns x_0.
"""

import math

from torch import Tensor

from ldm.samplers.base import GridSampler, Model, Noise


class DPMpp2MSDE(GridSampler):
    """One evaluation per step; adds noise; second order at eta 0."""

    default_spacing = "karras"
    default_eta = 1.0

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        x_0, _ = self.predict(i, x_t, denoise)
        if i == len(self) - 1:
            return x_0, x_0
        lambdas = self.nodes.lambdas
        h = lambdas[i + 1] - lambdas[i]
        direction = x_0
        if self.memory:
            r = (lambdas[i] - lambdas[i - 1]) / h
            direction = x_0 + (x_0 - self.memory[0]) / (2 * r)
        self.memory = [x_0]
        return self.along(i, h, x_t, -math.expm1(-(1 + self.eta) * h) * direction, noise), x_0

    def along(self, i: int, h: float, x_t: Tensor, target: Tensor, noise: Noise) -> Tensor:
        """Return (sigma' / sigma) e^(-eta h) x + alpha' target + noise; h is infinite from pure noise."""
        kept = math.exp(-self.eta * h) if self.eta else 1.0
        alpha, sigma = self.nodes.alphas[i + 1], self.nodes.sigmas[i + 1]
        x = sigma / self.nodes.sigmas[i] * kept * x_t + alpha * target
        return x + sigma * math.sqrt(1 - kept**2) * noise(x_t) if self.eta else x
