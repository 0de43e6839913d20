"""DPM++ 3M SDE: three-step exponential Adams-Bashforth in lambda on the reverse SDE (k-diffusion).

With k = (1 + eta) h, phi_2 = (e^-k - 1) / k + 1, phi_3 = phi_2 / k - 1/2 and divided differences of x_0 in
units of the step, D1 = first and D2 = second:

    x' = (sigma' / sigma) e^(-eta h) x + alpha' ((1 - e^-k) x_0 + phi_2 D1 - phi_3 D2)
         + sigma' sqrt(1 - e^(-2 eta h)) n

The second step uses only D1, the first step neither. Third order would need 2 phi_3. The method is kept as
other tools have it: of second order at eta 0, with a third to a fifth of the error of 2M.
"""

import math

from torch import Tensor

from ldm.samplers.base import Model, Noise
from ldm.samplers.dpmpp_2m_sde import DPMpp2MSDE


class DPMpp3MSDE(DPMpp2MSDE):
    """One evaluation per step; adds noise; second order at eta 0."""

    default_spacing = "exponential"

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        x_0, _ = self.predict(i, x_t, denoise)
        if i == len(self) - 1:
            return x_0, x_0
        h = self.nodes.lambdas[i + 1] - self.nodes.lambdas[i]
        k = (1 + self.eta) * h
        phi_2 = math.expm1(-k) / k + 1
        target = -math.expm1(-k) * x_0
        first, second = self._differences(i, h, x_0)
        if first is not None:
            target = target + phi_2 * first
        if second is not None:
            target = target - (phi_2 / k - 0.5) * second
        self.memory = [x_0, *self.memory[:1]]
        return self.along(i, h, x_t, target, noise), x_0

    def _differences(self, i: int, h: float, x_0: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the first and second derivative of x_0 in lambda / h; None without enough earlier steps."""
        lambdas = self.nodes.lambdas
        if not self.memory:
            return None, None
        r_0 = (lambdas[i] - lambdas[i - 1]) / h
        slope = (x_0 - self.memory[0]) / r_0
        if len(self.memory) < 2:
            return slope, None
        r_1 = (lambdas[i - 1] - lambdas[i - 2]) / h
        bend = (slope - (self.memory[0] - self.memory[1]) / r_1) / (r_0 + r_1)
        return slope + bend * r_0, bend
