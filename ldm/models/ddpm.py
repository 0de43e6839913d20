"""What a diffusion model can do with its noise schedule, by the reference's names and arguments.

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2)         v = alpha_t eps - sigma_t x_0
    p(x_{t-1} | x_t) = q(x_{t-1} | x_t, x_0 of the network)
    q(x_{t-1} | x_t, x_0) and the losses             see ldm.diffusion.schedule and ldm.diffusion.loss

Samplers, wrappers and training loops of third parties call these methods; nothing in this package does.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.diffusion.loss import diffusion_loss, distance
from ldm.diffusion.prediction import add_noise, from_v, velocity
from ldm.diffusion.published import extract_into_tensor, noise_like
from ldm.diffusion.schedule import Schedule, make_betas


class DDPM(nn.Module):
    """Base of all diffusion models here. A subclass sets `schedule` and `parameterization` and has a network.

    Times `t` are (b,) integers; x_start, x_t, noise and v are (b, c, h, w).
    """

    schedule: Schedule
    parameterization: str
    # Of `p_losses`; the names are those of the reference's configurations.
    loss_type: str = "l2"
    l_simple_weight: float = 1.0
    original_elbo_weight: float = 0.0
    v_posterior: float = 0.0
    logvar_init: float = 0.0        # log variance of the error at every time

    def apply_model(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Return what the network predicts."""
        raise NotImplementedError

    def register_schedule(
        self,
        given_betas: np.ndarray | Tensor | None = None,
        beta_schedule: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> None:
        """Take the noise schedule of these betas (N,), or of a name; see ldm.diffusion.schedule.make_betas.

        Raises: ConfigError.
        """
        if given_betas is None:
            given_betas = make_betas(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
        self.schedule = Schedule(given_betas, v_posterior=self.v_posterior)
        self.num_timesteps = self.schedule.num_timesteps
        where = self.betas.device if "betas" in self._buffers else None
        for name, table in self.schedule.published_buffers().items():
            self.register_buffer(name, table.to(device=where))

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and log variance of q(x_t | x_0)."""
        alpha, sigma = self.schedule.alpha_sigma(t, x_start)
        return alpha * x_start, sigma**2, 2 * sigma.log()

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return x_t; the noise comes from the device's generator unless given."""
        return add_noise(self.schedule, x_start, torch.randn_like(x_start) if noise is None else noise, t)

    def get_v(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return v of clean latents `x` and their noise."""
        return velocity(self.schedule, x, noise, t)

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return x_0 as sqrt(1 / abar) x_t - sqrt(1 / abar - 1) noise.

        It is the difference of two large numbers where abar is small: the last digits depend on this order.
        """
        of_x_t, of_noise = (
            extract_into_tensor(table.to(t.device), t, x_t.shape)
            for table in (self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod)
        )
        return of_x_t * x_t - of_noise * noise

    def predict_start_from_z_and_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """Return x_0 of noisy latents and their v."""
        return from_v(x_t, v, *self.schedule.alpha_sigma(t, x_t)).x_0

    def predict_eps_from_z_and_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """Return the noise of noisy latents and their v."""
        return from_v(x_t, v, *self.schedule.alpha_sigma(t, x_t)).eps

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and log variance (floored at 1e-20) of q(x_{t-1} | x_t, x_0)."""
        return self.schedule.posterior(x_start, x_t, t)

    def p_mean_variance(
        self, x: Tensor, c: Any, t: Tensor, clip_denoised: bool, *, return_x0: bool = False
    ) -> tuple[Tensor, ...]:
        """Return mean, variance and log variance of p(x_{t-1} | x_t), and with `return_x0` x_0.

        Args:
            x: x_t.
            c: as `apply_model` takes it.
            clip_denoised: limit x_0 to -1..1, as pixels need it and latents do not.
        """
        output = self.apply_model(x, t, c)
        x_0 = {
            "eps": self.predict_start_from_noise,
            "v": self.predict_start_from_z_and_v,
            "x0": lambda x, t, output: output,
        }[self.parameterization](x, t, output)
        x_0 = x_0.clamp(-1, 1) if clip_denoised else x_0
        return (*self.q_posterior(x_0, x, t), *([x_0] if return_x0 else []))

    @torch.no_grad()
    def p_sample(
        self,
        x: Tensor,
        c: Any,
        t: Tensor,
        clip_denoised: bool = False,
        repeat_noise: bool = False,
        *,
        return_x0: bool = False,
        temperature: float = 1.0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Draw x_{t-1} of p(x_{t-1} | x_t); at time 0 it is the mean. With `return_x0`, return x_0 too.

        Args:
            x, c, clip_denoised: as in `p_mean_variance`.
            repeat_noise: the same noise for each sample of the batch; it is from the device's generator.
            temperature: factor on the noise.
        """
        mean, _, log_variance, x_0 = self.p_mean_variance(x, c, t, clip_denoised, return_x0=True)
        noise = temperature * noise_like(x.shape, x.device, repeat_noise)
        is_last = (t == 0).view(-1, *(1,) * (x.ndim - 1))
        drawn = torch.where(is_last, mean, mean + (0.5 * log_variance).exp() * noise)
        return (drawn, x_0) if return_x0 else drawn

    def get_loss(self, pred: Tensor, target: Tensor, mean: bool = True) -> Tensor:
        """Return the error by `loss_type`: its mean, or one number an element."""
        loss = distance(pred, target, self.loss_type)
        return loss.mean() if mean else loss

    def p_losses(
        self, x_start: Tensor, cond: Any, t: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, and its parts by the names under which the reference logs them.

        Args:
            cond: as `apply_model` takes it.
            noise: what makes x_t of x_start; from the device's generator unless given.
        """
        noise = torch.randn_like(x_start) if noise is None else noise
        logvar = self._buffers.get("logvar")        # of ControlLDM
        if logvar is None:
            logvar = torch.full((self.schedule.num_timesteps,), self.logvar_init)
        output = self.apply_model(self.q_sample(x_start, t, noise), t, cond)
        loss = diffusion_loss(
            self.schedule,
            self.parameterization,
            output,
            x_start,
            noise,
            t,
            loss_type=self.loss_type,
            logvar=logvar,
            l_simple_weight=self.l_simple_weight,
            original_elbo_weight=self.original_elbo_weight,
        )
        prefix = "train" if self.training else "val"
        parts = {"loss_simple": loss.simple, "loss_vlb": loss.vlb, "loss": loss.total}
        return loss.total, {f"{prefix}/{name}": value for name, value in parts.items()}

    def forward(self, x: Tensor, c: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `p_losses` of latents at times drawn from the device's generator."""
        t = torch.randint(0, self.schedule.num_timesteps, (len(x),), device=x.device)
        return self.p_losses(x, c, t)
