"""Heun's method on the probability-flow ODE (arXiv 2206.00364, algorithm 1, without added noise).

    x~ / alpha' = x / alpha + (s' - s) eps(x, t)                         an Euler step in sigma_karras
    x' / alpha' = x / alpha + (s' - s) (eps(x, t) + eps(x~, t')) / 2     its correction

Each step takes two evaluations, except the last, which ends at the clean latents. For an even number of
evaluations the first step is a plain Euler step, because the path is straightest there. From pure noise (zero
terminal SNR), where s is infinite, the first step is always plain.
"""

from collections.abc import Sequence

from torch import Tensor

from ldm.samplers.base import GridSampler, Model, Noise


class Heun(GridSampler):
    """Two evaluations per step; deterministic; second order."""

    default_spacing = "karras"

    def steps_for(self, evaluations: int) -> int:
        self.plain = 1 - evaluations % 2
        if self.schedule.zero_terminal_snr and evaluations > 1:
            self.plain = 2 - self.plain
        return (evaluations + self.plain + 1) // 2

    def evaluations(self, start: int = 0, memory: Sequence[Tensor] = ()) -> int:
        """Return the number of UNet evaluations from step `start` to the end."""
        return sum(2 if self._is_corrected(i) else 1 for i in range(start, len(self)))

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        prediction = self.predict(i, x_t, denoise)
        ahead = self.straight(i, prediction)
        if not self._is_corrected(i):
            return ahead, prediction.x_0
        eps = (prediction.eps + self.predict(i + 1, ahead, denoise).eps) / 2
        s, s_next = self.nodes.sigma_karras(i), self.nodes.sigma_karras(i + 1)
        return self.nodes.alphas[i + 1] * (x_t / self.nodes.alphas[i] + (s_next - s) * eps), prediction.x_0

    def _is_corrected(self, i: int) -> bool:
        return self.plain <= i < len(self) - 1
