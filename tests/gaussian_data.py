"""A data distribution whose best denoiser and whose sampling ODE are known exactly.

For x_0 ~ N(mu, s^2) the marginal of x_t is N(alpha mu, alpha^2 s^2 + sigma^2), the best guess of x_0 is
linear in x_t, and the probability-flow ODE keeps (x_t - mean) / standard deviation constant.
"""

import torch
from torch import Tensor

from ldm.diffusion.prediction import Prediction
from ldm.diffusion.schedule import Schedule, make_betas

SCHEDULE = Schedule(make_betas("linear", 1000, 0.00085, 0.012))
MU, S = 0.7, 0.5


def best_x_0(x_t: Tensor, t: Tensor) -> Tensor:
    """Return E[x_0 | x_t]."""
    alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
    return MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x_t - alpha * MU)


def denoise(x_t: Tensor, t: Tensor, cond: None = None) -> Prediction:
    """Return the exact prediction."""
    alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
    x_0 = best_x_0(x_t, t)
    return Prediction(x_0, (x_t - alpha * x_0) / sigma)


def network(parameterization: str):
    """Return the exact `apply_model` in a parameterization."""

    def apply_model(x_t: Tensor, t: Tensor, cond: None = None) -> Tensor:
        x_0, eps = denoise(x_t, t)
        alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
        return {"eps": eps, "x0": x_0, "v": alpha * eps - sigma * x_0}[parameterization]

    return apply_model


def exact(x_t: Tensor, t: float, to: float) -> Tensor:
    """Carry x_t along the probability-flow ODE from time t to another."""
    times = torch.tensor([t, to], dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha_sigma(times, times)
    deviation = (alpha**2 * S**2 + sigma**2).sqrt()
    return alpha[1] * MU + deviation[1] / deviation[0] * (x_t - alpha[0] * MU)
