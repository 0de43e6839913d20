"""Two data distributions whose best denoiser and whose sampling ODE are known exactly.

For x_0 ~ N(mu, s^2) the marginal of x_t is N(alpha mu, alpha^2 s^2 + sigma^2), the best guess of x_0 is
linear in x_t, and the probability-flow ODE keeps (x_t - mean) / standard deviation constant.

For a mixture of such in one dimension the best guess is their average by how likely each made x_t. On a line
paths of an ODE do not cross, so each keeps its quantile: F_t(x_t) is constant, F_t being the distribution
function of x_t. That is inverted to the last bit, so no fine run of some other solver is trusted.
"""

import math

import torch
from torch import Tensor

from ldm.diffusion.prediction import Prediction
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.samplers.lcm import SIGMA_DATA, TIME_SCALE

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


class Mixture:
    """x_0 is N(mu_k, s_k^2) with probability w_k, each number by itself."""

    def __init__(self, w: list[float], mu: list[float], s: list[float]):
        self.w, self.mu, self.s = (torch.tensor(x, dtype=torch.float64) for x in (w, mu, s))

    def denoise(self, x_t: Tensor, t: Tensor, cond: None = None) -> Prediction:
        """Return the exact prediction."""
        alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
        apart, deviation = self._parts(x_t, alpha, sigma)
        likely = (self.w.log() - deviation.log() - (apart / deviation) ** 2 / 2).softmax(-1)
        means = self.mu + alpha[..., None] * self.s**2 / deviation**2 * apart
        x_0 = (likely * means).sum(-1).to(x_t.dtype)
        return Prediction(x_0, (x_t - alpha * x_0) / sigma)

    def exact(self, x_t: Tensor, t: float, to: float | None) -> Tensor:
        """Carry x_t along the probability-flow ODE from time t to another, or to the clean end (None)."""
        return self.at(self.log_odds(x_t, t), to)

    def at(self, log_odds: Tensor, t: float | None) -> Tensor:
        """Return what `log_odds` at time t (None: clean) gives these numbers."""
        low, high = torch.full_like(log_odds, -50), torch.full_like(log_odds, 50)
        for _ in range(60):  # halves 100 to the spacing of float64
            middle = (low + high) / 2
            under = self.log_odds(middle, t) < log_odds
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        return (low + high) / 2

    def log_odds(self, x: Tensor, t: float | None) -> Tensor:
        """Return log F_t(x) / (1 - F_t(x)), which is exact in both tails."""
        z = torch.divide(*self._parts(x, *self._noise_at(t)))
        below, above = (torch.logsumexp(self.w.log() + torch.special.log_ndtr(side), -1) for side in (z, -z))
        return below - above

    def distilled(self, x_t: Tensor, t: Tensor, cond: None = None) -> Prediction:
        """Return what a perfect latent consistency model predicts: f(x_t, t) is the end of the path."""
        t = float(t[0])
        norm = math.hypot(TIME_SCALE * t, SIGMA_DATA)
        skipped = (SIGMA_DATA / norm) ** 2 * x_t
        x_0 = (self.exact(x_t, t, None) - skipped) / (TIME_SCALE * t / norm)
        return Prediction(x_0, x_0)

    def moments(self) -> list[float]:
        """Return the mean and the second, third and fourth central moment."""
        mean = (self.w * self.mu).sum()
        d, v = self.mu - mean, self.s**2
        central = (d**2 + v, d**3 + 3 * d * v, d**4 + 6 * d**2 * v + 3 * v**2)
        return [float(mean), *(float((self.w * m).sum()) for m in central)]

    def _parts(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return (..., k) distances of x from the means, and deviations, at one noise."""
        alpha, sigma = alpha[..., None], sigma[..., None]
        return x[..., None] - alpha * self.mu, (alpha**2 * self.s**2 + sigma**2).sqrt()

    def _noise_at(self, t: float | None) -> tuple[Tensor, Tensor]:
        if t is None:
            return torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        times = torch.tensor([t], dtype=torch.float64)
        return SCHEDULE.alpha_sigma(times, times)


MIXTURE = Mixture([0.5, 0.3, 0.2], [-1.2, 0.5, 1.6], [0.3, 0.2, 0.4])
