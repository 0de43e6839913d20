"""The variance-preserving noise schedule.

    x_t = alpha_t x_0 + sigma_t eps,    alpha_t = sqrt(abar_t),    sigma_t = sqrt(1 - abar_t)
    abar_t = prod_{s <= t} (1 - beta_s)                       (DDPM, arXiv 2006.11239, eq. 4)

The training times are the integers 0 .. N-1. Between them log alpha is piecewise linear, as in the
discrete schedule of DPM-Solver (arXiv 2206.00927, appendix D.4), so a time may be fractional. Where abar ends
at 0 (zero terminal SNR) alpha itself is linear in the last interval.
Everything is computed in float64 and cast once, when it meets the latents.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ldm.errors import ConfigError, nearest


def _cosine(timesteps: int, offset: float, max_beta: float = 0.999) -> np.ndarray:
    """Betas of abar_t ~ cos^2 (arXiv 2102.09672, eq. 17), capped where the ratio would reach 1."""
    f = np.cos((np.arange(timesteps + 1) / timesteps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1 - f[1:] / f[:-1], 0, max_beta)


# name -> betas(timesteps, linear_start, linear_end, cosine_s)
_BETAS: dict[str, Callable[[int, float, float, float], np.ndarray]] = {
    # The reference name "linear" means linear in sqrt(beta).
    "linear": lambda n, start, end, s: np.linspace(math.sqrt(start), math.sqrt(end), n) ** 2,
    "sqrt_linear": lambda n, start, end, s: np.linspace(start, end, n),
    "sqrt": lambda n, start, end, s: np.linspace(start, end, n) ** 0.5,
    "cosine": lambda n, start, end, s: _cosine(n, s),
    # The same curve with the offset fixed at 0.008, whatever cosine_s says.
    "squaredcos_cap_v2": lambda n, start, end, s: _cosine(n, 0.008),
}


def make_betas(
    beta_schedule: str = "linear",
    timesteps: int = 1000,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> np.ndarray:
    """Return the float64 betas of a reference schedule name.

    Raises:
        ConfigError: the name is unknown, or the betas would not lie in [0, 1).
    """
    if beta_schedule not in _BETAS:
        known = f"{', '.join(_BETAS)}{nearest(beta_schedule, _BETAS)}"
        raise ConfigError(f"unknown beta_schedule {beta_schedule!r}: expected one of {known}")
    if timesteps < 1:
        raise ConfigError(f"timesteps is {timesteps}: a noise schedule needs at least 1")
    if not (0 <= linear_start < 1 and 0 <= linear_end < 1):
        raise ConfigError(f"linear_start {linear_start} and linear_end {linear_end} must lie in [0, 1)")
    return _BETAS[beta_schedule](int(timesteps), linear_start, linear_end, cosine_s)


class Schedule:
    """alpha_t, sigma_t and the posterior of a discrete noise schedule; tables are float64 on the CPU."""

    def __init__(self, betas: np.ndarray | Tensor, *, v_posterior: float = 0.0):
        """Build the tables.

        Args:
            betas: (N,) noise added by each forward step, in [0, 1).
            v_posterior: 0 takes the smaller of DDPM's two posterior variances, 1 takes beta_t.
        """
        betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu").detach().clone()
        if betas.ndim != 1 or len(betas) == 0:
            raise ConfigError(f"betas have shape {tuple(betas.shape)}: expected one number per training step")
        if not bool(((betas >= 0) & (betas < 1)).all()):
            raise ConfigError("betas must lie in [0, 1)")
        self._fill(betas, torch.cumprod(1 - betas, dim=0), v_posterior)

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: np.ndarray | Tensor) -> "Schedule":
        """Build from abar_t itself, which some models carry without (or more exactly than) their betas."""
        abar = torch.as_tensor(alphas_cumprod, device="cpu").detach().to(torch.float64)
        prev = torch.cat([torch.ones(1, dtype=torch.float64, device="cpu"), abar[:-1]])
        schedule = cls.__new__(cls)
        schedule._fill(1 - abar / prev, abar, 0.0)
        return schedule

    def with_zero_terminal_snr(self) -> "Schedule":
        """Return this schedule shifted and scaled so that the last time is pure noise.

        sqrt(abar_t) -> (sqrt(abar_t) - sqrt(abar_T)) sqrt(abar_0) / (sqrt(abar_0) - sqrt(abar_T))
        (arXiv 2305.08891, algorithm 1). abar_0 stays. Only v and x_0 can be predicted there.
        """
        root = self.alphas_cumprod.sqrt()
        if len(root) < 2 or float(root[0]) == float(root[-1]):
            raise ConfigError("zero terminal SNR needs a noise schedule that ends noisier than it begins")
        return Schedule.from_alphas_cumprod(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)

    def _fill(self, betas: Tensor, alphas_cumprod: Tensor, v_posterior: float) -> None:
        self.betas = betas
        self.alphas_cumprod = alphas_cumprod
        self.alphas_cumprod_prev = torch.cat([torch.ones_like(alphas_cumprod[:1]), alphas_cumprod[:-1]])
        self.num_timesteps = len(betas)
        self.zero_terminal_snr = float(alphas_cumprod[-1]) == 0
        # q(x_{t-1} | x_t, x_0), DDPM eq. 6 and 7.
        abar, prev = self.alphas_cumprod, self.alphas_cumprod_prev
        small = betas * (1 - prev) / (1 - abar)
        self.posterior_variance = (1 - v_posterior) * small + v_posterior * betas
        self.posterior_mean_coef1 = betas * prev.sqrt() / (1 - abar)
        self.posterior_mean_coef2 = (1 - prev) * (1 - betas).sqrt() / (1 - abar)
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor, Tensor]] = {}

    def alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha_t, sigma_t) for a batch of times, ready to multiply `like`.

        Args:
            t: (b,) times in [0, N-1]. An integer dtype reads the tables; a floating dtype interpolates
                log alpha, so whole numbers give the same values either way.
            like: (b, ...) tensor that gives device, number of axes and, at least float32, the dtype.
        """
        log_alphas, alphas, sigmas = self._tables_for(like)
        t = t.to(like.device)
        shape = (-1,) + (1,) * (like.ndim - 1)
        if not t.is_floating_point():
            return alphas[t].view(shape), sigmas[t].view(shape)
        if self.num_timesteps == 1:
            raise ConfigError("fractional times need a noise schedule of at least 2 training steps")
        t = t.to(log_alphas.dtype)
        left = t.detach().floor().clamp(0, self.num_timesteps - 2)
        i = left.long()
        log_alpha = log_alphas[i] + (t - left) * (log_alphas[i + 1] - log_alphas[i])
        if self.zero_terminal_snr:  # log alpha ends at minus infinity: there alpha itself is linear
            log_alpha = log_alpha + torch.where(i == self.num_timesteps - 2, 1 - (t - left), 1.0).log()
        sigma = (-torch.expm1(2 * log_alpha)).sqrt()  # expm1 keeps sigma exact where it is small
        return log_alpha.exp().view(shape), sigma.view(shape)

    def _tables_for(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log alpha, alpha and sigma beside `like`; half precision is too coarse, so float32 at least."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        key = (like.device, dtype)
        if key not in self._tables:
            # Kept for training too, where tensors made in inference mode are refused.
            with torch.inference_mode(False):
                abar = self.alphas_cumprod
                log_alphas = 0.5 * abar.log()
                if self.zero_terminal_snr:
                    log_alphas[-1] = log_alphas[-2]
                tables = (log_alphas, abar.sqrt(), (1 - abar).sqrt())
                # Cast before the move: some devices have no float64.
                self._tables[key] = tuple(x.to(dtype).to(like.device) for x in tables)
        return self._tables[key]

    def times_of_sigma(self, sigma_karras: np.ndarray) -> list[float]:
        """Return the fractional times at which sigma / alpha has these values, the inverse of `alpha_sigma`.

        Values outside the schedule give its first or last time. The schedule must not have zero terminal SNR.
        """
        log_alpha = -0.5 * np.log1p(np.square(np.asarray(sigma_karras, dtype=np.float64)))
        table = 0.5 * np.log(self.alphas_cumprod.numpy())[::-1]     # rising, as np.interp wants it
        times = np.arange(self.num_timesteps, dtype=np.float64)[::-1]
        return np.interp(log_alpha, table, times).tolist()

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio alpha_t^2 / sigma_t^2 at integer times, float32, beside `t`."""
        ratio = self.alphas_cumprod / (1 - self.alphas_cumprod)
        return ratio.to(torch.float32).to(t.device)[t]

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and log variance (floored at 1e-20) of q(x_{t-1} | x_t, x_0).

        Args:
            x_0, x_t: (b, ...) clean and noisy latents.
            t: (b,) integer times.
        """
        def at_t(table: Tensor) -> Tensor:
            dtype = torch.promote_types(x_t.dtype, torch.float32)
            return table.to(dtype).to(x_t.device)[t].view((-1,) + (1,) * (x_t.ndim - 1))

        mean = at_t(self.posterior_mean_coef1) * x_0 + at_t(self.posterior_mean_coef2) * x_t
        variance = self.posterior_variance
        return mean, at_t(variance), at_t(variance.clamp(min=1e-20).log())

    def lvlb_weights(self, parameterization: str = "eps") -> Tensor:
        """Return the (N,) float32 weights that turn the simple loss into the variational bound.

        Index 0, where the posterior variance vanishes, takes the weight of index 1. Reference runs were made
        with two oddities that stay: the tables are rounded to float32 first, which moves that of index 1
        by 1e-4 of itself, and the x0 weights divide by 2 - abar where 2 (1 - abar) must have been meant.
        """
        tables = (self.betas, 1 - self.betas, self.alphas_cumprod, self.posterior_variance)
        betas, alphas, abar, variance = (table.to(torch.float32) for table in tables)
        if parameterization == "eps":
            weights = betas**2 / (2 * variance * alphas * (1 - abar))
        elif parameterization == "x0":
            weights = 0.5 * abar.sqrt() / (2 - abar)
        elif parameterization == "v":
            weights = torch.ones_like(abar)
        else:
            raise ConfigError(f"unknown parameterization {parameterization!r}: expected eps, v or x0")
        if len(weights) > 1:
            weights[0] = weights[1]
        return weights

    def published_buffers(self) -> dict[str, Tensor]:
        """Return the twelve float32 tables that reference checkpoints carry, by their reference names."""
        abar, prev = self.alphas_cumprod, self.alphas_cumprod_prev
        tables = {
            "betas": self.betas,
            "alphas_cumprod": abar,
            "alphas_cumprod_prev": prev,
            "sqrt_alphas_cumprod": abar.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - abar).log(),
            "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
            "posterior_variance": self.posterior_variance,
            "posterior_log_variance_clipped": self.posterior_variance.clamp(min=1e-20).log(),
            "posterior_mean_coef1": self.posterior_mean_coef1,
            "posterior_mean_coef2": self.posterior_mean_coef2,
        }
        return {name: table.to(torch.float32) for name, table in tables.items()}
