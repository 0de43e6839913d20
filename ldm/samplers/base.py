"""What every sampler has: its times, its memory of earlier steps, and the ways in for image-to-image."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.prediction import Prediction, add_noise
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.spacing import spaced_times
from ldm.errors import InputError

Noise = Callable[[Tensor], Tensor]
"""Called with a tensor, returns standard normal numbers of its shape, dtype and device."""

Model = Callable[[Tensor, Tensor], Prediction]
"""`denoise` with its conditioning bound: (x_t, t) -> Prediction."""

Correction = Callable[[Tensor], Tensor]
"""Clips or quantizes each x_0."""


def batch_of(t: float, like: Tensor) -> Tensor:
    """Return one time for each sample of `like`: int64 for an int, float32 or wider for a float."""
    dtype = torch.int64 if isinstance(t, int) else torch.promote_types(like.dtype, torch.float32)
    return torch.full((len(like),), t, dtype=dtype, device=like.device)


def times_tensor(times: Sequence[float]) -> Tensor:
    """Return times on the CPU: int64 for ints, float64 for floats."""
    return torch.tensor(times, dtype=torch.float64 if isinstance(times[0], float) else None, device="cpu")


def check_eta(cls: type["Sampler"], eta: float | None) -> None:
    """Raise InputError where a sampler cannot honour an eta."""
    if eta and cls.default_eta is None:
        raise InputError(f"eta is {eta}: {cls.__name__} is deterministic, so eta must be 0 (DDIM takes it)")
    if eta is not None and eta < 0:
        raise InputError(f"eta is {eta}: expected 0 (deterministic) to 1 (as noisy as DDPM)")


class Sampler:
    """One way from noise to latents, a step at a time.

    Attributes:
        timesteps: training times in the order of the steps; int or float is the dtype that the network gets.
        num_steps: steps that were asked for; len(self) is how many there are.
        memory: all that a step keeps for later ones, newest first. Saved with latents, put back to go on.
    """

    default_eta: float | None = None
    """how much noise steps add if nobody says; None: they add none and take no eta"""
    default_spacing: str | None = None
    """the spacing if nobody names one; None: the published times"""
    count_exact_spacing: str | None = None
    """the spacing to name where a count must be exact; None: without one it already is"""

    def __init__(
        self, schedule: Schedule, timesteps: Sequence[float], correct_x_0: Correction | None = None
    ):
        self.schedule = schedule
        self.timesteps = list(timesteps)
        self.num_steps = len(self.timesteps)
        self.correct_x_0 = correct_x_0
        self.memory: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.timesteps)

    def reset(self, memory: Sequence[Tensor] = ()) -> None:
        """Forget earlier steps, or take up the memory that an earlier run had before its next step."""
        self.memory = list(memory)

    def evaluations(self, start: int = 0, memory: Sequence[Tensor] = ()) -> int:
        """Return how often the network is asked from step `start`, begun with that memory, to the end."""
        return len(self) - start

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        """Take step `i` and return (x_t after it, x_0)."""
        raise NotImplementedError

    def predict(self, i: int, x_t: Tensor, denoise: Model) -> Prediction:
        """Ask the network at step `i`, with x_0 corrected."""
        prediction = denoise(x_t, batch_of(self.timesteps[i], x_t))
        return prediction if self.correct_x_0 is None else self.corrected(prediction, i, x_t)

    def corrected(self, prediction: Prediction, i: int, x_t: Tensor) -> Prediction:
        """Correct x_0 and leave eps, as the published samplers do."""
        return prediction._replace(x_0=self.correct_x_0(prediction.x_0))

    def start_index(self, t_enc: int) -> int:
        """Return the step from which `t_enc` steps are left."""
        if not 0 <= t_enc <= len(self):
            raise InputError(f"cannot run {t_enc} of {len(self)} sampling steps")
        return len(self) - t_enc

    def noised(self, x_0: Tensor, t_enc: int | Tensor, eps: Tensor) -> Tensor:
        """Carry clean latents to where step `start_index(t_enc)` begins; `t_enc` is one number or (b,)."""
        left = torch.as_tensor(t_enc, device="cpu").long()
        if bool((left < 0).any()) or bool((left > len(self)).any()):
            raise InputError(f"cannot add the noise of {t_enc} of {len(self)} sampling steps")
        times = times_tensor([*self.timesteps, type(self.timesteps[0])(0)])[len(self) - left]
        if times.is_floating_point():
            times = times.to(torch.promote_types(x_0.dtype, torch.float32))
        return add_noise(self.schedule, x_0, eps, times.expand(len(x_0)).to(x_0.device))


class Nodes(NamedTuple):
    """alpha, sigma and lambda = log(alpha / sigma) where steps begin and end, noisiest first."""

    alphas: list[float]
    sigmas: list[float]
    lambdas: list[float]

    @classmethod
    def at(cls, schedule: Schedule, times: Sequence[float]) -> "Nodes":
        """Return the nodes at these training times."""
        like = torch.empty(0, dtype=torch.float64, device="cpu")
        alphas, sigmas = schedule.alpha_sigma(times_tensor(times), like)
        return cls(alphas.tolist(), sigmas.tolist(), (alphas.log() - sigmas.log()).tolist())

    def then_clean(self) -> "Nodes":
        """Return these nodes and the clean latents, whose lambda is infinite."""
        return Nodes([*self.alphas, 1.0], [*self.sigmas, 0.0], [*self.lambdas, math.inf])

    def sigma_karras(self, i: int) -> float:
        """Return sigma / alpha at node `i`: the sigma of arXiv 2206.00364, where x is x_t / alpha."""
        return self.sigmas[i] / self.alphas[i] if self.alphas[i] else math.inf


class GridSampler(Sampler):
    """A sampler on any spacing of times, whose last step goes to the clean latents: `nodes` has one more."""

    default_spacing = "linspace"

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,  # network evaluations
        *,
        spacing: str | None = None,  # one of ldm.diffusion.spacing.SPACINGS; None: the class's own
        eta: float | None = None,  # noise of the steps, in units of what an ancestral step adds
        correct_x_0: Correction | None = None,
    ):
        check_eta(type(self), eta)
        self.schedule = schedule
        times = self.times_for(spacing or self.default_spacing, self.steps_for(num_steps))
        super().__init__(schedule, times, correct_x_0)
        self.eta = (self.default_eta if eta is None else eta) or 0.0
        self.nodes = Nodes.at(schedule, times).then_clean()

    def corrected(self, prediction: Prediction, i: int, x_t: Tensor) -> Prediction:
        """Correct x_0, and eps with it, so that x_t = alpha x_0 + sigma eps still holds."""
        x_0 = self.correct_x_0(prediction.x_0)
        return Prediction(x_0, (x_t - self.nodes.alphas[i] * x_0) / self.nodes.sigmas[i])

    def steps_for(self, evaluations: int) -> int:
        """Return how many steps cost `evaluations` network evaluations."""
        return evaluations

    def times_for(self, spacing: str, num_steps: int) -> list[int] | list[float]:
        """Return the times of a spacing, noisiest first."""
        return spaced_times(spacing, self.schedule, num_steps)

    def straight(self, i: int, prediction: Prediction) -> Tensor:
        """Return alpha' x_0 + sigma' eps: step `i` in first order, from pure noise (alpha 0) too."""
        return self.nodes.alphas[i + 1] * prediction.x_0 + self.nodes.sigmas[i + 1] * prediction.eps
