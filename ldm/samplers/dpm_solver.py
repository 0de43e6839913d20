"""DPM-Solver++ (2M): second-order multistep on the clean latents (arXiv 2211.01095, algorithm 2).

    lambda = log(alpha / sigma),   h = lambda_t - lambda_s,   r = h_before / h
    D      = m_s + (m_s - m_before) / (2 r)                  m: the network's x_0 at s and at the step before
    x_t    = (sigma_t / sigma_s) x_s - alpha_t (e^-h - 1) D

Times are uniform from N - 1 to 0 and mostly fractional. As published, the first step is of first order
(D = m_s), the last one too where there are fewer than 15 steps, and the result keeps the noise of time 0.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ldm.diffusion.prediction import Prediction
from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.samplers.loop import Noise, batch_of

FIRST_ORDER_END_BELOW = 15
"""With so few steps the last second-order one is unstable."""


class DPMSolver:
    """One evaluation a step; deterministic; good from about 15 steps."""

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,
        *,
        eta: float = 0.0,
        correct_x_0: Callable[[Tensor], Tensor] | None = None,
    ):
        if num_steps < 1:
            raise InputError(f"{num_steps} sampling steps: expected at least 1")
        if eta != 0:
            raise InputError(f"eta is {eta}: DPM-Solver++ is deterministic, so eta must be 0 (DDIM takes it)")
        self.schedule = schedule
        self.correct_x_0 = correct_x_0
        start = schedule.num_timesteps - 1
        nodes = torch.linspace(start, 0, num_steps + 1, dtype=torch.float64, device="cpu")
        alphas, sigmas = schedule.alpha_sigma(nodes, nodes)
        self.timesteps: list[float] = nodes[:-1].tolist()
        self.alphas: list[float] = alphas.tolist()  # at every node: one more than there are steps
        self.sigmas: list[float] = sigmas.tolist()
        self.lambdas: list[float] = (alphas.log() - sigmas.log()).tolist()
        self.x_0_before: Tensor | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    def reset(self) -> None:
        """Forget the earlier step."""
        self.x_0_before = None

    def step(
        self, i: int, x_t: Tensor, denoise: Callable[[Tensor, Tensor], Prediction], noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Take step `i` and return (latents at the next node, x_0)."""
        x_0 = denoise(x_t, batch_of(self.timesteps[i], x_t)).x_0
        x_0 = x_0 if self.correct_x_0 is None else self.correct_x_0(x_0)
        h = self.lambdas[i + 1] - self.lambdas[i]
        direction = x_0
        first_order_end = i == len(self) - 1 and len(self) < FIRST_ORDER_END_BELOW
        if self.x_0_before is not None and not first_order_end:
            r = (self.lambdas[i] - self.lambdas[i - 1]) / h
            direction = x_0 + (x_0 - self.x_0_before) / (2 * r)
        self.x_0_before = x_0
        ratio = self.sigmas[i + 1] / self.sigmas[i]
        return ratio * x_t - self.alphas[i + 1] * math.expm1(-h) * direction, x_0

    def start_index(self, t_enc: int) -> int:
        """Return the step from which `t_enc` steps are left."""
        if not 0 <= t_enc <= len(self):
            raise InputError(f"cannot run {t_enc} of {len(self)} sampling steps")
        return len(self) - t_enc

    def noised(self, x_0: Tensor, t_enc: int | Tensor, eps: Tensor) -> Tensor:
        """Return x_t exactly at the time of step `start_index(t_enc)`; `t_enc` is one number or (b,)."""
        rows = torch.as_tensor(t_enc, device="cpu").long()
        if bool((rows < 0).any()) or bool((rows > len(self)).any()):
            raise InputError(f"cannot add the noise of {t_enc} of {len(self)} sampling steps")
        times = torch.tensor([*self.timesteps, 0.0], dtype=torch.float64, device="cpu")[len(self) - rows]
        times = times.expand(len(x_0)).to(torch.promote_types(x_0.dtype, torch.float32))
        alpha, sigma = self.schedule.alpha_sigma(times.to(x_0.device), x_0)
        return alpha * x_0 + sigma * eps
