"""The base classes of samplers: times, memory of earlier steps, and starting points for image-to-image."""

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
"""Takes a tensor and returns standard normal noise of the same shape, dtype and device."""

Model = Callable[[Tensor, Tensor], Prediction]
"""`denoise` with the conditioning bound: (x_t, t) -> Prediction."""

Correction = Callable[[Tensor], Tensor]
"""Clips or quantizes every predicted x_0."""


def batch_of(t: float, like: Tensor) -> Tensor:
    """Return the time repeated for each sample of `like`: int64 for an int, float32 or wider for a float."""
    dtype = torch.int64 if isinstance(t, int) else torch.promote_types(like.dtype, torch.float32)
    return torch.full((len(like),), t, dtype=dtype, device=like.device)


def times_tensor(times: Sequence[float]) -> Tensor:
    """Return times on the CPU: int64 for ints, float64 for floats."""
    return torch.tensor(times, dtype=torch.float64 if isinstance(times[0], float) else None, device="cpu")


def check_eta(cls: type["Sampler"], eta: float | None) -> None:
    """Raise InputError if a sampler does not support this eta."""
    if eta and cls.default_eta is None:
        raise InputError(f"eta is {eta}: {cls.__name__} takes no eta; leave it out, or use another sampler")
    if eta is not None and eta < 0:
        raise InputError(f"eta is {eta}: expected 0 (deterministic) to 1 (as noisy as DDPM)")


class Sampler:
    """Takes latents from noise to clean, one step at a time.

    Attributes:
        timesteps: training times in the order of the steps, ints or floats, as the UNet gets them.
        num_steps: requested number of steps; len(self) is the actual number.
        memory: tensors that a step keeps for later steps, newest first. It is saved with the latents of an
            interrupted run and restored when the run is resumed.
    """

    default_eta: float | None = None
    """default of eta, the noise added by each step; None: the sampler adds none, or always the same amount"""
    default_spacing: str | None = None
    """default spacing; None: the times of the reference"""
    count_exact_spacing: str | None = None
    """spacing that gives exactly `num_steps` evaluations; None if the default does"""

    def __init__(self, schedule: Schedule, timesteps: Sequence[float], correct_x_0: Correction | None = None):
        self.schedule = schedule
        self.timesteps = list(timesteps)
        self.num_steps = len(self.timesteps)
        self.correct_x_0 = correct_x_0
        self.memory: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.timesteps)

    def reset(self, memory: Sequence[Tensor] = ()) -> None:
        """Clear the memory of earlier steps, or restore that of an interrupted run."""
        self.memory = list(memory)

    def evaluations(self, start: int = 0, memory: Sequence[Tensor] = ()) -> int:
        """Return the number of UNet evaluations from step `start`, with this memory, to the end."""
        return len(self) - start

    def step(self, i: int, x_t: Tensor, denoise: Model, noise: Noise) -> tuple[Tensor, Tensor]:
        """Take step `i` and return (x_t after the step, x_0)."""
        raise NotImplementedError

    def predict(self, i: int, x_t: Tensor, denoise: Model) -> Prediction:
        """Evaluate the UNet at step `i` and apply `correct_x_0`."""
        prediction = denoise(x_t, batch_of(self.timesteps[i], x_t))
        return prediction if self.correct_x_0 is None else self.corrected(prediction, i, x_t)

    def corrected(self, prediction: Prediction, i: int, x_t: Tensor) -> Prediction:
        """Correct x_0 and leave eps unchanged, as the reference samplers do."""
        return prediction._replace(x_0=self.correct_x_0(prediction.x_0))

    def start_index(self, t_enc: int) -> int:
        """Return the index of the step from which `t_enc` steps remain."""
        if not 0 <= t_enc <= len(self):
            raise InputError(f"cannot run {t_enc} of {len(self)} sampling steps")
        return len(self) - t_enc

    def noised(self, x_0: Tensor, t_enc: int | Tensor, eps: Tensor) -> Tensor:
        """Add noise to clean latents, to the level at which step `start_index(t_enc)` begins.

        Args:
            t_enc: remaining steps, one number or (b,).
        """
        left = torch.as_tensor(t_enc, device="cpu").long()
        if bool((left < 0).any()) or bool((left > len(self)).any()):
            raise InputError(f"cannot add the noise of {t_enc} of {len(self)} sampling steps")
        times = self.times_before(left)
        if times.is_floating_point():
            times = times.to(torch.promote_types(x_0.dtype, torch.float32))
        return add_noise(self.schedule, x_0, eps, times.expand(len(x_0)).to(x_0.device))

    def times_before(self, left: Tensor) -> Tensor:
        """Return the training times whose noise latents have before the last `left` steps, () or (b,)."""
        return times_tensor([*self.timesteps, type(self.timesteps[0])(0)])[len(self) - left]


class Nodes(NamedTuple):
    """alpha, sigma and lambda = log(alpha / sigma) at the ends of the steps, noisiest first."""

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
        """Return these nodes with the clean latents appended, whose lambda is infinite."""
        return Nodes([*self.alphas, 1.0], [*self.sigmas, 0.0], [*self.lambdas, math.inf])

    def sigma_karras(self, i: int) -> float:
        """Return sigma / alpha at node `i`, the sigma of arXiv 2206.00364, whose x is x_t / alpha."""
        return self.sigmas[i] / self.alphas[i] if self.alphas[i] else math.inf


class GridSampler(Sampler):
    """A sampler for any spacing of times; its last step ends at the clean latents, the last of `nodes`."""

    default_spacing = "linspace"

    def __init__(
        self,
        schedule: Schedule,
        num_steps: int,  # UNet evaluations
        *,
        spacing: str | None = None,  # one of ldm.diffusion.spacing.SPACINGS; None: default_spacing
        eta: float | None = None,  # noise of each step relative to that of an ancestral step
        correct_x_0: Correction | None = None,
    ):
        check_eta(type(self), eta)
        self.schedule = schedule
        times = self.times_for(spacing or self.default_spacing, self.steps_for(num_steps))
        super().__init__(schedule, times, correct_x_0)
        self.eta = (self.default_eta if eta is None else eta) or 0.0
        self.nodes = Nodes.at(schedule, times).then_clean()

    def corrected(self, prediction: Prediction, i: int, x_t: Tensor) -> Prediction:
        """Correct x_0, and adapt eps so that x_t = alpha x_0 + sigma eps still holds."""
        x_0 = self.correct_x_0(prediction.x_0)
        return Prediction(x_0, (x_t - self.nodes.alphas[i] * x_0) / self.nodes.sigmas[i])

    def steps_for(self, evaluations: int) -> int:
        """Return the number of steps that take `evaluations` UNet evaluations."""
        return evaluations

    def times_for(self, spacing: str, num_steps: int) -> list[int] | list[float]:
        """Return the times of a spacing, noisiest first."""
        return spaced_times(spacing, self.schedule, num_steps)

    def straight(self, i: int, prediction: Prediction) -> Tensor:
        """Return alpha' x_0 + sigma' eps, a first-order step `i`; it also works from pure noise (alpha 0)."""
        return self.nodes.alphas[i + 1] * prediction.x_0 + self.nodes.sigmas[i + 1] * prediction.eps
