"""What a network's output means: eps, v or x_0, and each of them from the others.

    x_t = alpha x_0 + sigma eps                               (DDPM, arXiv 2006.11239, eq. 4)
    v   = alpha eps - sigma x_0                               (arXiv 2202.00512, appendix D)
    x_0 = alpha x_t - sigma v,    eps = sigma x_t + alpha v

A sampler sees only `denoise(x_t, t, cond) -> Prediction`, so nothing behind this file asks which it was.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.schedule import Schedule
from ldm.errors import ConfigError, InputError


class Prediction(NamedTuple):
    """The network's guess of the clean latents and of the noise; x_t = alpha x_0 + sigma eps."""

    x_0: Tensor
    eps: Tensor


Denoise = Callable[[Tensor, Tensor, Any], Prediction]


def add_noise(schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return x_t, the clean latents `x_0` carried to times `t` (b,) with the given noise."""
    alpha, sigma = schedule.alpha_sigma(t, x_0)
    return alpha * x_0 + sigma * eps


def velocity(schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return v, the target of v-prediction, at times `t` (b,)."""
    alpha, sigma = schedule.alpha_sigma(t, x_0)
    return alpha * eps - sigma * x_0


def from_eps(x_t: Tensor, eps: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Prediction:
    """Complete a prediction of the noise."""
    return Prediction((x_t - sigma * eps) / alpha, eps)


def from_v(x_t: Tensor, v: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Prediction:
    """Complete a prediction of the velocity."""
    return Prediction(alpha * x_t - sigma * v, sigma * x_t + alpha * v)


def from_x_0(x_t: Tensor, x_0: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Prediction:
    """Complete a prediction of the clean latents."""
    return Prediction(x_0, (x_t - alpha * x_0) / sigma)


# The reference values of `parameterization`.
COMPLETE = {"eps": from_eps, "v": from_v, "x0": from_x_0}


def network_output(
    prediction: Prediction, parameterization: str, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """Return what the network must have said for this prediction: the inverse of `COMPLETE`."""
    if parameterization == "v":
        return alpha * prediction.eps - sigma * prediction.x_0
    return prediction.eps if parameterization == "eps" else prediction.x_0


def check_parameterization(parameterization: str) -> None:
    """Raise ConfigError unless this is a reference parameterization."""
    if parameterization not in COMPLETE:
        known = ", ".join(COMPLETE)
        raise ConfigError(f"unknown parameterization {parameterization!r}: expected one of {known}")


def denoiser(
    apply_model: Callable[[Tensor, Tensor, Any], Tensor], schedule: Schedule, parameterization: str
) -> Denoise:
    """Return `denoise(x_t, t, cond) -> Prediction` over a network that predicts eps, v or x_0.

    `t` is (b,), whole or fractional, and reaches the network as it is. The prediction is at least float32,
    whatever the network computes in.

    Raises:
        InputError: the network predicts eps and the schedule has zero terminal SNR.
    """
    check_parameterization(parameterization)
    if parameterization == "eps" and schedule.zero_terminal_snr:
        raise InputError(
            "zero terminal SNR with a model that predicts eps: pure noise tells it no x_0; "
            "expected a model that predicts v, or no --zero-snr"
        )
    complete = COMPLETE[parameterization]

    def denoise(x_t: Tensor, t: Tensor, cond: Any) -> Prediction:
        alpha, sigma = schedule.alpha_sigma(t, x_t)
        output = apply_model(x_t, t, cond)
        return complete(x_t, output.to(torch.promote_types(output.dtype, alpha.dtype)), alpha, sigma)

    return denoise
