"""The reference helper functions, called as third-party code calls them."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from ldm.diffusion.schedule import make_betas
from ldm.diffusion.timesteps import ddim_table
from ldm.diffusion.timesteps import ddim_timesteps as timesteps_of

logger = logging.getLogger(__name__)


def make_beta_schedule(
    schedule: str,
    n_timestep: int,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> np.ndarray:
    """Return the float64 betas of a schedule name."""
    return make_betas(schedule, n_timestep, linear_start, linear_end, cosine_s)


def make_ddim_timesteps(
    ddim_discr_method: str, num_ddim_timesteps: int, num_ddpm_timesteps: int, verbose: bool = True
) -> np.ndarray:
    """Return DDIM's training times, least noisy first."""
    times = timesteps_of(num_ddim_timesteps, num_ddpm_timesteps, ddim_discr_method)
    if verbose:
        logger.info("DDIM timesteps: %s", times)
    return times


def make_ddim_sampling_parameters(
    alphacums: np.ndarray | Tensor,
    ddim_timesteps: Sequence[int] | np.ndarray,
    eta: float,
    verbose: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (sigmas, alphas, alphas_prev): DDIM's added noise and abar at its times and the ones before."""
    abar = np.asarray(torch.as_tensor(alphacums).detach().cpu(), dtype=np.float64)
    alphas, alphas_prev, sigmas = ddim_table(abar, np.asarray(ddim_timesteps), eta)
    if verbose:
        logger.info("DDIM alphas: %s; previous: %s; sigmas at eta %s: %s", alphas, alphas_prev, eta, sigmas)
    return sigmas, alphas, alphas_prev


def extract_into_tensor(a: Tensor, t: Tensor, x_shape: Sequence[int]) -> Tensor:
    """Return a[t] shaped to multiply a batch of shape `x_shape`."""
    return a.gather(-1, t).reshape(len(t), *(1,) * (len(x_shape) - 1))


def noise_like(shape: Sequence[int], device: torch.device | str, repeat: bool = False) -> Tensor:
    """Return standard normal numbers of a shape; with `repeat` the same for each sample of the batch."""
    if not repeat:
        return torch.randn(*shape, device=device)
    return torch.randn(1, *shape[1:], device=device).repeat(shape[0], *(1,) * (len(shape) - 1))


def checkpoint(func: Callable[..., Any], inputs: Sequence[Any], params: Sequence[Tensor], flag: bool) -> Any:
    """Return func(*inputs); with `flag` its intermediate results are computed again for the gradients.

    `params`, what `func` depends on besides, gets gradients without being named.
    """
    return recomputed(func, *inputs, use_reentrant=False) if flag else func(*inputs)


def nonlinearity(x: Tensor) -> Tensor:
    """Return x sigmoid(x)."""
    return torch.nn.functional.silu(x)
