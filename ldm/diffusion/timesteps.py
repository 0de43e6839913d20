"""Which training times a sampler visits, and how a network is told the time.

The reference choice ("uniform") strides by N // S, so it can give more times than asked for (30 -> 31),
and adds 1 to each. It is kept, because a seed's image depends on it.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.errors import InputError


def ddim_timesteps(num_steps: int, num_timesteps: int = 1000, method: str = "uniform") -> np.ndarray:
    """Return the int64 training times that DDIM and PLMS visit, least noisy first.

    uniform: 1, 1 + c, 1 + 2c, ... with c = N // S.  quad: trunc(linspace(0, sqrt(0.8 N), S)^2) + 1.
    A time past the end (N, where c divides N - 1) becomes N - 1. "all" is every time from 0, of which
    `num_steps` is not a choice but N.

    Raises:
        InputError: `num_steps` is not in 1 .. N, or the method is unknown.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise InputError(f"{num_steps} sampling steps: the model was trained with 1 to {num_timesteps}")
    if method == "uniform":
        times = np.arange(0, num_timesteps, num_timesteps // num_steps) + 1
    elif method == "quad":
        times = (np.linspace(0, math.sqrt(0.8 * num_timesteps), num_steps) ** 2).astype(np.int64) + 1
    elif method == "all":
        return np.arange(num_timesteps)
    else:
        raise InputError(f"unknown spacing of timesteps {method!r}: expected uniform, quad or all")
    return np.minimum(times, num_timesteps - 1)


class DDIMTable(NamedTuple):
    """One row a visited time, least noisy first; float64."""

    alphas_cumprod: np.ndarray
    alphas_cumprod_prev: np.ndarray
    """abar of the time before, which the step goes to"""
    eta_sigmas: np.ndarray
    """standard deviation of the noise that the step adds"""


def ddim_table(
    alphas_cumprod: np.ndarray, times: np.ndarray, eta: float, last: float | None = None
) -> DDIMTable:
    """Return abar and the added noise of DDIM's steps (arXiv 2010.02502, eq. 16).

    eta_sigma^2 = eta^2 (1 - abar_prev) / (1 - abar) (1 - abar / abar_prev)

    Args:
        alphas_cumprod: (N,) abar of every training time.
        times: the visited times, least noisy first.
        eta: 0 is deterministic, 1 adds as much noise as DDPM.
        last: abar that the last step goes to: abar_0, as in the reference, when None.
    """
    abar = alphas_cumprod[times]
    prev = np.append(alphas_cumprod[0] if last is None else last, abar[:-1])
    ratio = np.divide(abar, prev, out=np.ones_like(abar), where=prev > 0)  # 0 / 0: pure noise visited twice
    return DDIMTable(abar, prev, eta * np.sqrt((1 - prev) / (1 - abar) * (1 - ratio)))


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000) -> Tensor:
    """Return [cos(t f), sin(t f)] with f_i = max_period^(-i / half), float32.

    Args:
        t: (b,) times, whole or fractional.
        dim: channels of the result, (b, dim); an odd one ends in a zero.
    """
    half = dim // 2
    # In this order of operations: t f reaches hundreds, where rounding differs by 5e-5 between orders.
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(exponents)  # (b, dim // 2)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))
