"""What a network is trained to minimise.

    L_i  = mean over c, h, w of |target - output|^p,   p = 2 or 1   (DDPM, arXiv 2006.11239, eq. 14)
    loss = l_simple_weight mean_i(w_i L_i / exp(g_i) + g_i) + original_elbo_weight mean_i(lvlb_i L_i)

with g_i = logvar[t_i], and w_i = 1 or the min-SNR weight (arXiv 2303.09556, eq. 4 and section 3.4):
min(snr, gamma) / snr for eps, min(snr, gamma) / (snr + 1) for v, min(snr, gamma) for x_0.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ldm.diffusion.prediction import check_parameterization, velocity
from ldm.diffusion.schedule import Schedule
from ldm.errors import ConfigError


class Loss(NamedTuple):
    """The loss to minimise and its reference parts; all but `per_sample` are scalars."""

    total: Tensor
    simple: Tensor
    """mean L_i: unweighted, so comparable between runs"""
    gamma: Tensor
    """mean(w_i L_i / exp(g_i) + g_i)"""
    vlb: Tensor
    """mean(lvlb_i L_i)"""
    per_sample: Tensor
    """(b,) L_i"""


def target(schedule: Schedule, parameterization: str, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return what a network of this parameterization should give for x_t = alpha x_0 + sigma eps."""
    check_parameterization(parameterization)
    if parameterization == "v":
        return velocity(schedule, x_0, eps, t)
    return eps if parameterization == "eps" else x_0


def min_snr_weights(schedule: Schedule, parameterization: str, t: Tensor, gamma: float) -> Tensor:
    """Return the (b,) weights that cap the loss where there is little noise; gamma is 5 in the paper."""
    check_parameterization(parameterization)
    if gamma <= 0:
        raise ConfigError(f"min_snr_gamma is {gamma}: expected a number above 0, such as 5")
    snr = schedule.snr(t)
    capped = snr.clamp(max=gamma)
    return {"eps": capped / snr, "v": capped / (snr + 1), "x0": capped}[parameterization]


def distance(output: Tensor, wanted: Tensor, loss_type: str = "l2") -> Tensor:
    """Return |wanted - output|^p of each element, p = 2 for "l2" and 1 for "l1"."""
    if loss_type not in ("l1", "l2"):
        raise ConfigError(f"unknown loss_type {loss_type!r}: expected l1 or l2")
    error = output - wanted
    return error.square() if loss_type == "l2" else error.abs()


def diffusion_loss(
    schedule: Schedule,
    parameterization: str,
    output: Tensor,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    *,
    loss_type: str = "l2",
    logvar: Tensor | None = None,
    l_simple_weight: float = 1.0,
    original_elbo_weight: float = 0.0,
    min_snr_gamma: float | None = None,
) -> Loss:
    """Compare a network's output with its target; the formula stands at the top of this file.

    Args:
        output: (b, ...) what the network gave for x_t at times `t`.
        x_0, eps: (b, ...) the clean latents and the noise that x_t was made of.
        t: (b,) integer times.
        logvar: (N,) learned or fixed log variances; zeros when None.
        min_snr_gamma: cap of the signal-to-noise ratio; no weighting when None.
    """
    wanted = target(schedule, parameterization, x_0, eps, t)
    per_sample = distance(output.float(), wanted.float(), loss_type).flatten(1).mean(1)  # (b,)
    g = torch.zeros_like(per_sample) if logvar is None else logvar.to(t.device)[t]
    weights = 1.0 if min_snr_gamma is None else min_snr_weights(schedule, parameterization, t, min_snr_gamma)
    gamma = (weights * per_sample / g.exp() + g).mean()
    lvlb = schedule.lvlb_weights(parameterization).to(t.device)[t]
    vlb = (lvlb * per_sample).mean()
    total = l_simple_weight * gamma + original_elbo_weight * vlb
    return Loss(total, per_sample.mean(), gamma, vlb, per_sample)


def offset_noise(eps: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Add to `eps` (b, c, h, w) one normal number a channel times `strength`.

    It teaches a network to change the mean brightness (crosslabs.org, "Diffusion with offset noise").
    """
    shape = (*eps.shape[:2], *(1,) * (eps.ndim - 2))
    return eps + strength * torch.randn(shape, generator=generator, device=eps.device, dtype=eps.dtype)
