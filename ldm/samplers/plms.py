"""PLMS: pseudo linear multistep (arXiv 2202.09778, eq. 12 and 13), on DDIM's table without added noise.

    eps' = (55 e_n - 59 e_{n-1} + 37 e_{n-2} - 9 e_{n-3}) / 24     Adams-Bashforth, order 4
    eps' = (23 e_n - 16 e_{n-1} + 5 e_{n-2}) / 12                  third step
    eps' = (3 e_n - e_{n-1}) / 2                                   second step
    eps' = (e(x_t, t) + e(x~, t_prev)) / 2                         first step, where x~ is DDIM's x_prev

DDIM's update with eps' follows. The average is one of predicted noise even for models that predict v.
"""

from collections.abc import Sequence

from torch import Tensor

from ldm.diffusion.prediction import from_eps
from ldm.diffusion.schedule import Schedule
from ldm.samplers.base import Correction, Model, Noise, batch_of, check_eta
from ldm.samplers.ddim import DDIM

# Weights of the predicted noise, newest first, by the number of predictions.
ADAMS_BASHFORTH = {
    1: (1,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class PLMS(DDIM):
    """One evaluation per step and one more in the first; always deterministic."""

    default_eta = None

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,
        *,
        eta: float | None = None,
        spacing: str | None = None,  # if given: exactly num_steps evaluations, hence one step fewer
        published: str = "uniform",
        correct_x_0: Correction | None = None,
    ):
        check_eta(PLMS, eta)
        # From pure noise (zero terminal SNR) an average gives no x_0, (x_t - eps') / 0; the step is plain.
        self.looks_ahead = not schedule.zero_terminal_snr and (spacing is None or num_steps > 1)
        nodes = num_steps if spacing is None or not self.looks_ahead else num_steps - 1
        super().__init__(
            schedule, nodes, eta=0.0, spacing=spacing, published=published, correct_x_0=correct_x_0
        )

    def evaluations(self, start: int = 0, memory: Sequence[Tensor] = ()) -> int:
        """Return the number of UNet evaluations from step `start` to the end; the first step takes two."""
        left = len(self) - start
        return left + 1 if left and self.looks_ahead and not memory else left

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        prediction = denoise(x_t, batch_of(self.timesteps[i], x_t))
        if self.table.alphas_cumprod[len(self) - 1 - i] == 0:
            return self.update(i, prediction, noise(x_t))
        self.memory = [prediction.eps, *self.memory[:3]]
        if len(self.memory) == 1 and self.looks_ahead:
            x_prev, _ = self.update(i, prediction, noise(x_t))
            t_prev = self.timesteps[min(i + 1, len(self) - 1)]
            eps = (prediction.eps + denoise(x_prev, batch_of(t_prev, x_prev)).eps) / 2
        else:
            weights = ADAMS_BASHFORTH[len(self.memory)]
            eps = sum(w * e for w, e in zip(weights, self.memory, strict=True))
            if len(self.memory) == 1:
                return self.update(i, prediction, noise(x_t))
        alpha, sigma = self.schedule.alpha_sigma(batch_of(self.timesteps[i], x_t), x_t)
        # The noise has no effect; drawing it keeps the generator in step with the reference.
        return self.update(i, from_eps(x_t, eps, alpha, sigma), noise(x_t))
