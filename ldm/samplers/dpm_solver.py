"""DPM-Solver++ (2M): second-order multistep on the clean latents (arXiv 2211.01095, algorithm 2).

    lambda = log(alpha / sigma),   h = lambda_t - lambda_s,   r = h_before / h
    D      = m_s + (m_s - m_before) / (2 r)                  m: the predicted x_0 at s and at the step before
    x_t    = (sigma_t / sigma_s) x_s - alpha_t (e^-h - 1) D

Times are uniform from N - 1 to 0 and mostly fractional. As in the reference, the first step is of first order
(D = m_s), so is the last one of fewer than 15 steps, and the result keeps the noise of time 0.
"""

import math

import numpy as np
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.diffusion.spacing import spaced_times
from ldm.errors import InputError
from ldm.samplers.base import Correction, Model, Nodes, Noise, Sampler, check_eta

FIRST_ORDER_END_BELOW = 15
"""with fewer steps, a last step of second order is unstable"""


class DPMSolver(Sampler):
    """One evaluation per step; deterministic; good from about 15 steps.

    With a `spacing` it uses those times, and its last step is of first order and ends at the clean latents.
    """

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,
        *,
        eta: float | None = None,
        spacing: str | None = None,  # None: the reference times
        correct_x_0: Correction | None = None,
    ):
        if num_steps < 1:
            raise InputError(f"{num_steps} sampling steps: expected at least 1")
        check_eta(type(self), eta)
        if spacing is None:
            nodes = np.linspace(schedule.num_timesteps - 1, 0, num_steps + 1).tolist()
            super().__init__(schedule, nodes[:-1], correct_x_0)
            self.nodes = Nodes.at(schedule, nodes)
        else:
            super().__init__(schedule, spaced_times(spacing, schedule, num_steps), correct_x_0)
            self.nodes = Nodes.at(schedule, self.timesteps).then_clean()

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        x_0 = self.predict(i, x_t, denoise).x_0
        lambdas = self.nodes.lambdas
        h = lambdas[i + 1] - lambdas[i]
        direction = x_0
        if self.memory and not self._ends_in_first_order(i):
            r = (lambdas[i] - lambdas[i - 1]) / h
            direction = x_0 + (x_0 - self.memory[0]) / (2 * r)
        self.memory = [x_0]
        ratio = self.nodes.sigmas[i + 1] / self.nodes.sigmas[i]
        return ratio * x_t - self.nodes.alphas[i + 1] * math.expm1(-h) * direction, x_0

    def _ends_in_first_order(self, i: int) -> bool:
        to_clean = math.isinf(self.nodes.lambdas[i + 1])
        return to_clean or (i == len(self) - 1 and len(self) < FIRST_ORDER_END_BELOW)
