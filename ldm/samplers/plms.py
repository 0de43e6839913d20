"""PLMS: pseudo linear multistep (arXiv 2202.09778, eq. 12 and 13), on DDIM's table without added noise.

    eps' = (55 e_n - 59 e_{n-1} + 37 e_{n-2} - 9 e_{n-3}) / 24     Adams-Bashforth, order 4
    eps' = (23 e_n - 16 e_{n-1} + 5 e_{n-2}) / 12                  third step
    eps' = (3 e_n - e_{n-1}) / 2                                   second step
    eps' = (e(x_t, t) + e(x~, t_prev)) / 2                         first step, x~ being DDIM's x_prev

Then DDIM's update with eps'. It averages noise, whatever the network predicts.
"""

from collections.abc import Callable

from torch import Tensor

from ldm.diffusion.prediction import Prediction, from_eps
from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.samplers.ddim import DDIM
from ldm.samplers.loop import Noise, batch_of

# Weights of the newest noise and of the ones before it, by how many there are.
ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class PLMS(DDIM):
    """One evaluation a step and one more in the first; always deterministic."""

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,
        *,
        eta: float = 0.0,
        spacing: str = "uniform",
        correct_x_0: Callable[[Tensor], Tensor] | None = None,
    ):
        if eta != 0:
            raise InputError(f"eta is {eta}: PLMS is deterministic, so eta must be 0 (DDIM takes it)")
        super().__init__(schedule, num_steps, spacing=spacing, correct_x_0=correct_x_0)
        self.history: list[Tensor] = []

    def reset(self) -> None:
        """Forget the noise of earlier steps."""
        self.history = []

    def step(
        self, i: int, x_t: Tensor, denoise: Callable[[Tensor, Tensor], Prediction], noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Take step `i` and return (x_prev, x_0)."""
        prediction = denoise(x_t, batch_of(self.timesteps[i], x_t))
        self.history = [prediction.eps, *self.history[:3]]
        if len(self.history) == 1:
            x_prev, _ = self.update(i, prediction, noise(x_t))
            t_prev = self.timesteps[min(i + 1, len(self) - 1)]
            eps = (prediction.eps + denoise(x_prev, batch_of(t_prev, x_prev)).eps) / 2
        else:
            weights = ADAMS_BASHFORTH[len(self.history)]
            eps = sum(w * e for w, e in zip(weights, self.history, strict=True))
        alpha, sigma = self.schedule.alpha_sigma(batch_of(self.timesteps[i], x_t), x_t)
        # The noise is multiplied by nothing; drawing it keeps the generator where the published one is.
        return self.update(i, from_eps(x_t, eps, alpha, sigma), noise(x_t))
