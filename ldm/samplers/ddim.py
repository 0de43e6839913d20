"""DDIM (arXiv 2010.02502, eq. 12 and 16) and its inversion.

    x_prev = sqrt(abar_prev) x_0 + sqrt(1 - abar_prev - eta_sigma^2) eps + eta_sigma n

As in the reference, the last step ends at abar_0 instead of 1, unless it starts there.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import dropout

from ldm.diffusion.prediction import Prediction
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.spacing import spaced_times
from ldm.diffusion.timesteps import DDIMTable, ddim_table, ddim_timesteps
from ldm.errors import InputError
from ldm.samplers.base import Correction, Model, Noise, Sampler, batch_of, check_eta, times_tensor


def _times_and_table(
    schedule: Schedule, num_steps: int, spacing: str | None, published: str, eta: float
) -> tuple[list[float], DDIMTable]:
    """Return the times, noisiest first, and the table, least noisy first."""
    if spacing is None:
        times = ddim_timesteps(num_steps, schedule.num_timesteps, published)[::-1].tolist()
    else:
        times = spaced_times(spacing, schedule, num_steps)
    like = torch.empty(0, dtype=torch.float64, device="cpu")
    abar = schedule.alpha_sigma(times_tensor(times[::-1]), like)[0].numpy() ** 2
    # A step from time 0 can only go to the clean latents; any other ends at abar_0, as in the reference.
    last = 1.0 if times[-1] == 0 else float(schedule.alphas_cumprod[0])
    return times, ddim_table(abar, np.arange(len(times)), eta, last)


class DDIM(Sampler):
    """One evaluation per step; deterministic at eta 0, as noisy as DDPM at eta 1."""

    default_eta = 0.0
    count_exact_spacing = "uniform"

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,
        *,
        eta: float | None = None,
        spacing: str | None = None,  # one of ldm.diffusion.spacing.SPACINGS; None: the reference times
        published: str = "uniform",  # kind of the reference times, see ddim_timesteps
        temperature: float = 1.0,  # factor of the added noise
        noise_dropout: float = 0.0,  # probability of dropping elements of the added noise
        correct_x_0: Correction | None = None,
    ):
        check_eta(type(self), eta)
        eta = self.default_eta if eta is None else eta
        times, self.table = _times_and_table(schedule, num_steps, spacing, published, eta)
        if np.any(self.table.eta_sigmas**2 > 1 - self.table.alphas_cumprod_prev):
            raise InputError(f"eta is {eta}: a step would add more noise than its end has; expected 0 to 1")
        super().__init__(schedule, times, correct_x_0)
        self.num_steps = num_steps
        self.spacing = spacing
        self.published = published
        self.eta = eta
        self.temperature = temperature
        self.noise_dropout = noise_dropout

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        prediction = denoise(x_t, batch_of(self.timesteps[i], x_t))
        return self.update(i, prediction, noise(x_t))

    def update(self, i: int, prediction: Prediction, n: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the formula at the top of this file and return (x_prev, x_0)."""
        x_0 = prediction.x_0 if self.correct_x_0 is None else self.correct_x_0(prediction.x_0)
        row = len(self) - 1 - i
        prev, eta_sigma = self.table.alphas_cumprod_prev[row], self.table.eta_sigmas[row]
        x_prev = float(prev**0.5) * x_0 + float((1 - prev - eta_sigma**2) ** 0.5) * prediction.eps
        if eta_sigma > 0:
            n = dropout(n, self.noise_dropout) if self.noise_dropout else n
            x_prev = x_prev + float(eta_sigma * self.temperature) * n
        return x_prev, x_0

    def times_before(self, left: Tensor) -> Tensor:
        """Return the times of the rows `left` of the table, counted from the least noisy.

        As in the reference, the step that follows, `start_index(left)`, belongs to the row below. If all
        steps are run there is no row `left`, and the last row is used. Spacings whose least noisy time is
        far from 0, such as trailing, use the noise level that the step expects instead: the excess of one row
        would remain visible in the image.
        """
        if self.spacing not in (None, "uniform"):
            return super().times_before(left)
        return times_tensor(self.timesteps[::-1])[left.clamp(max=len(self) - 1)]


class DDIMInversion(Sampler):
    """From clean latents back to the noise from which DDIM at eta 0 generates them.

    This is DDIM's formula in the direction of more noise (arXiv 2010.02502, eq. 13). Step i goes to tau_i
    from the time of x_t, which is tau_{i-1}, or 0 in the first step.

    Args:
        asked: the time that the UNet gets: "before", that of x_t; "row", tau_i, as in ControlNet's code and
            as DDIM on the way back; or "index", i, as in the reference, which only eps-models understand.

    Raises:
        InputError: `asked` is none of these.
    """

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,
        *,
        spacing: str | None = None,
        published: str = "uniform",
        asked: str = "before",
    ):
        times, self.table = _times_and_table(schedule, num_steps, spacing, published, 0.0)
        kind, rows = type(times[0]), times[::-1]
        choices = {"before": [kind(0), *rows[:-1]], "row": rows, "index": range(len(rows))}
        if asked not in choices:
            raise InputError(f"times {asked!r} of an inversion: expected {', '.join(choices)}")
        super().__init__(schedule, choices[asked])

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        """Take step `i` towards more noise and return (x_next, x_0)."""
        eps = denoise(x_t, batch_of(self.timesteps[i], x_t)).eps
        here, there = self.table.alphas_cumprod_prev[i], self.table.alphas_cumprod[i]
        x_0 = (x_t - float((1 - here) ** 0.5) * eps) / float(here**0.5)
        return float(there**0.5) * x_0 + float((1 - there) ** 0.5) * eps, x_0
