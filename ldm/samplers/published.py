"""The reference sampler classes, called as third-party code calls them.

    samples, intermediates = DDIMSampler(model).sample(50, 4, (4, 64, 64), cond, ...)

They are shells over the samplers and the loop of this package. `model` is any object with `apply_model`,
`alphas_cumprod` and `parameterization`. Every argument either works or raises an InputError; none is
ignored.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import Denoise, Prediction, from_eps
from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.samplers import DDIM, DDIMInversion, Sampler, Step, make_sampler, sample_loop
from ldm.samplers.base import Noise, batch_of
from ldm.samplers.loop import gaussian
from ldm.samplers.published_cond import Conditioning, Published, PublishedGuidance, SeparateCalls

logger = logging.getLogger(__name__)

Intermediates = dict[str, list[Tensor]]


def _check_batch(cond: Conditioning, size: int, name: str) -> None:
    count = Published.of(cond).count()
    if count not in (None, size):
        raise InputError(f"{name} describes {count} samples: expected batch_size, {size}")


def _check_scales(scales: Sequence[float] | None, num_steps: int, uncond: Conditioning) -> None:
    if scales is None:
        return
    if len(scales) != num_steps:
        raise InputError(f"ucg_schedule has {len(scales)} scales: expected one for each of {num_steps} steps")
    if uncond is None:
        raise InputError("ucg_schedule needs unconditional_conditioning")


def _replay(draws: Sequence[Tensor]) -> Noise:
    """Return a source of noise that gives these tensors in turn."""
    left = iter(draws)

    def noise(x: Tensor) -> Tensor:
        try:
            draw = next(left)
        except StopIteration:
            raise InputError(f"normals_sequence has only {len(draws)} tensors: the run draws more") from None
        if draw.shape != x.shape:
            raise InputError(f"normals_sequence holds {tuple(draw.shape)} where {tuple(x.shape)} is drawn")
        return draw.to(x.device)

    return noise


def _with_scales(
    steps: Iterator[Step], guided: ClassifierFreeGuidance, scales: Sequence[float] | None
) -> Iterator[Step]:
    """Run the steps, each with its own guidance scale."""
    if scales is None:
        yield from steps
    else:
        for guided.guidance_scale in scales:
            yield next(steps)


@dataclass(frozen=True)
class _How:
    """What each step is passed next to x_t and t: keywords of `p_sample_ddim`, by their reference names.

    Args:
        quantize_denoised: replace x_0 by its nearest codes (`model.first_stage_model.quantize`).
        temperature: factor of the added noise.
        noise_dropout: part of the added noise that is left out.
        score_corrector: its `modify_score(model, eps, x, t, c, **corrector_kwargs)` replaces the noise.
        dynamic_threshold: scale x_0 down to this root mean square where it is larger.
    """

    quantize_denoised: bool = False
    temperature: float = 1.0
    noise_dropout: float = 0.0
    score_corrector: Any = None
    corrector_kwargs: dict[str, Any] | None = None
    unconditional_guidance_scale: float = 1.0
    unconditional_conditioning: Conditioning = None
    dynamic_threshold: float | None = None


class _PublishedSampler:
    """What the three reference classes have in common."""

    name: str
    guidance: type[PublishedGuidance] = PublishedGuidance

    def __init__(self, model: Any, schedule: str = "linear", device: torch.device | str | None = None):
        """Wrap a model.

        Args:
            schedule: only "linear", the reference default: the noise schedule is the model's own.
            device: where noise is drawn; the model's when None.
        """
        if schedule != "linear":
            raise InputError(f"schedule {schedule!r} cannot be chosen here: the model brings its own")
        self.model = model
        self.schedule: Schedule = getattr(model, "schedule", None)
        if not isinstance(self.schedule, Schedule):
            self.schedule = Schedule.from_alphas_cumprod(model.alphas_cumprod)
        self.ddpm_num_timesteps = self.schedule.num_timesteps
        where = device if device is not None else getattr(model, "device", None)
        self.device = torch.device(where if where is not None else model.alphas_cumprod.device)
        self.sampler: Sampler | None = None
        self._every_step: DDIM | None = None

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Conditioning = None,
        callback: Callable[[int], None] | None = None,
        normals_sequence: Sequence[Tensor] | None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        quantize_x0: bool = False,
        eta: float = 0.0,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        *,
        verbose: bool = True,
        **asked: Any,
    ) -> tuple[Tensor, Intermediates]:
        """Sample `batch_size` latents of `shape` (c, h, w) in about S steps.

        Args:
            callback: called with the index of every step.
            normals_sequence: used in turn instead of random numbers, in the order in which they are drawn.
            img_callback: called with x_0 and the index of every step.
            quantize_x0: `quantize_denoised` of `_How`.
            mask: 1 where `x0` is to stay.
            verbose: log the number of steps.
            asked: x_T, the latents to start from; log_every_t, every how many steps (100) the intermediates
                are kept, of which the first always is; ucg_schedule, the guidance scale of each step instead
                of one for all; and the other fields of `_How`.

        Returns:
            The samples, and {"x_inter": [x_T, ...], "pred_x0": [x_T, ...]}.
        """
        _check_batch(conditioning, batch_size, "conditioning")
        uncond = asked.get("unconditional_conditioning")
        _check_batch(uncond, batch_size, "unconditional_conditioning")
        sampler = self._make(S, eta)
        if verbose:
            logger.info("%s: %d steps, shape %s", type(self).__name__, len(sampler), (batch_size, *shape))
        return self._sampling(
            conditioning,
            (batch_size, *shape),
            noise=gaussian if normals_sequence is None else _replay(normals_sequence),
            callback=callback,
            img_callback=img_callback,
            quantize_denoised=quantize_x0,
            mask=mask,
            x0=x0,
            **asked,
        )

    def _sampling(
        self,
        cond: Conditioning,
        shape: Sequence[int],
        *,
        noise: Noise,
        x_T: Tensor | None = None,
        all_times: bool = False,
        num_left: int | None = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        callback: Callable[[int], None] | None = None,
        img_callback: Callable[[Tensor, int], None] | None = None,
        log_every_t: int = 100,
        ucg_schedule: Sequence[float] | None = None,
        **how: Any,
    ) -> tuple[Tensor, Intermediates]:
        """Run the steps that were chosen, or the last `num_left`, and keep what callers look at."""
        how = _How(**how)
        total = len(self._steps(all_times))
        start = 0 if num_left is None else total - num_left
        _check_scales(ucg_schedule, total - start, how.unconditional_conditioning)
        x_t = noise(torch.empty(*shape, device=self.device)) if x_T is None else x_T
        intermediates: Intermediates = {"x_inter": [x_t], "pred_x0": [x_t]}
        loop = {"noise": noise, "keep_mask": mask, "keep_x_0": x0, "start": start}
        for step in self._loop(all_times, cond, x_t, how, ucg_schedule, **loop):
            x_t = step.x_t
            if callback:
                callback(step.i - start)
            if img_callback:
                img_callback(step.x_0, step.i - start)
            if (total - 1 - step.i) % log_every_t == 0 or step.i == start:
                intermediates["x_inter"].append(x_t)
                intermediates["pred_x0"].append(step.x_0)
        return x_t, intermediates

    def _loop(
        self,
        all_times: bool,
        cond: Conditioning,
        x_t: Tensor,
        how: _How,
        scales: Sequence[float] | None = None,
        **loop: Any,
    ) -> Iterator[Step]:
        """Return the steps from `start` on; `loop` holds keywords of `sample_loop`."""
        sampler = self._steps(all_times)
        if how.temperature != 1 or how.noise_dropout != 0:
            raise InputError(
                f"temperature {how.temperature} and noise_dropout {how.noise_dropout} change the noise of "
                f"steps, and {self.name} adds none: expected 1 and 0 (DDIM takes others)"
            )
        sampler.correct_x_0 = self._correction(how.quantize_denoised, how.dynamic_threshold)
        guided, denoise = self._denoiser(how)
        return _with_scales(sample_loop(sampler, denoise, x_t, cond, **loop), guided, scales)

    @torch.no_grad()
    def stochastic_encode(
        self, x0: Tensor, t: int | Tensor, use_original_steps: bool = False, noise: Tensor | None = None
    ) -> Tensor:
        """Add to `x0` the noise of row `t` ((b,) or one) of the table, or of training time `t`."""
        return self._steps(use_original_steps).noised(x0, t, gaussian(x0) if noise is None else noise)

    @torch.no_grad()
    def decode(
        self,
        x_latent: Tensor,
        cond: Conditioning,
        t_start: int,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning = None,
        use_original_steps: bool = False,
        callback: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Run the last `t_start` steps, of the table or, one by one, of all training times."""
        start = self._steps(use_original_steps).start_index(int(t_start))
        how = _How(
            unconditional_guidance_scale=unconditional_guidance_scale,
            unconditional_conditioning=unconditional_conditioning,
        )
        x_t = x_latent
        for step in self._loop(use_original_steps, cond, x_latent, how, start=start):
            x_t = step.x_t
            if callback:
                callback(step.i - start)
        return x_t

    def _make(self, num_steps: int, eta: float, **options: Any) -> Sampler:
        """Build the sampler and keep it for encoding and decoding."""
        self.sampler = make_sampler(self.name, self.schedule, num_steps, eta=eta, **options)
        self._every_step = None     # it shares eta
        return self.sampler

    def _steps(self, all_times: bool = False) -> Sampler:
        """Return the steps that were chosen, or those of all training times, with the same eta."""
        if not all_times:
            if self.sampler is None:
                raise InputError("no steps have been chosen: call make_schedule(num_steps) or sample first")
            return self.sampler
        if self._every_step is None:
            eta = getattr(self.sampler, "eta", 0.0)
            self._every_step = DDIM(self.schedule, self.ddpm_num_timesteps, published="all", eta=eta)
        return self._every_step

    def _guided(self, uncond: Conditioning, scale: float) -> ClassifierFreeGuidance:
        if uncond is None and scale != 1:
            raise InputError(f"guidance scale {scale} needs unconditional_conditioning, or must be 1")
        return self.guidance(self.model, self.schedule, uncond, scale)

    def _denoiser(self, how: _How) -> tuple[ClassifierFreeGuidance, Denoise]:
        """Return the guidance, and the guidance with the score corrector, if any, around it."""
        guided = self._guided(how.unconditional_conditioning, how.unconditional_guidance_scale)
        if how.score_corrector is None:
            if how.corrector_kwargs:
                raise InputError("corrector_kwargs are given without a score_corrector")
            return guided, guided

        def corrected(x_t: Tensor, t: Tensor, cond: Any) -> Prediction:
            eps, more = guided(x_t, t, cond).eps, how.corrector_kwargs or {}
            eps = how.score_corrector.modify_score(self.model, eps, x_t, t, cond, **more)
            return from_eps(x_t, eps, *self.schedule.alpha_sigma(t, x_t))

        return guided, corrected

    def _correction(self, quantize: bool, threshold: float | None) -> Callable[[Tensor], Tensor] | None:
        """Return what is done to each x_0: quantized first, then thresholded."""
        if not quantize and threshold is None:
            return None
        if quantize and not hasattr(getattr(self.model, "first_stage_model", None), "quantize"):
            raise InputError("quantize_x0 needs a first stage with a codebook, which this model lacks")

        def correct(x_0: Tensor) -> Tensor:
            if quantize:
                x_0 = self.model.first_stage_model.quantize(x_0)[0]
            if threshold is not None:
                rms = x_0.square().flatten(1).mean(1).sqrt().view(-1, *(1,) * (x_0.ndim - 1))
                x_0 = x_0 * (threshold / rms.clamp(min=threshold))
            return x_0

        return correct


class _TableSampler(_PublishedSampler):
    """A sampler on DDIM's table, which third-party code reads from attributes."""

    def make_schedule(
        self,
        ddim_num_steps: int,
        ddim_discretize: str = "uniform",
        ddim_eta: float = 0.0,
        verbose: bool = True,
    ) -> None:
        """Choose the steps and set `ddim_timesteps`, `ddim_alphas` and their siblings."""
        self._make(ddim_num_steps, ddim_eta, published=ddim_discretize)
        if verbose:
            logger.info("%s timesteps: %s", type(self).__name__, self.ddim_timesteps)

    def _make(self, num_steps: int, eta: float, **options: Any) -> Sampler:
        sampler = super()._make(num_steps, eta, **options)
        abar, prev, sigmas = sampler.table
        for name, buffer in self.schedule.published_buffers().items():
            if not name.startswith("posterior"):
                setattr(self, name, buffer.to(self.device))
        self.ddim_timesteps = np.array(sampler.timesteps[::-1])
        self.ddim_alphas = torch.from_numpy(abar).float().to(self.device)
        self.ddim_alphas_prev = prev
        self.ddim_sigmas = torch.from_numpy(sigmas).float().to(self.device)
        self.ddim_sqrt_one_minus_alphas = (1 - self.ddim_alphas).sqrt()
        return sampler

    @property
    def ddim_sigmas_for_original_num_steps(self) -> Tensor:
        """The noise that steps through all training times add, (N,) float32."""
        return torch.from_numpy(self._steps(all_times=True).table.eta_sigmas).float().to(self.device)


class _Overridable(Sampler):
    """The steps of a table, each taken by a function: `take(i, x_t) -> (x_prev, x_0)`."""

    def __init__(self, table: Sampler, take: Callable[[int, Tensor], tuple[Tensor, Tensor]]):
        super().__init__(table.schedule, table.timesteps)
        self.take = take

    def step(self, i: int, x_t: Tensor, denoise: Any, noise: Noise) -> tuple[Tensor, Tensor]:
        return self.take(i, x_t)


class DDIMSampler(_TableSampler):
    """DDIM by its reference name.

    `sample` runs `ddim_sampling`, and that and `decode` take each step by `p_sample_ddim`: a subclass may
    override either.
    """

    name = "ddim"
    inversion_times = "index"
    """what the reference's `encode` passes the network as the time, see DDIMInversion"""
    _noise: Noise = staticmethod(gaussian)

    def _sampling(self, cond: Conditioning, shape: Sequence[int], *, noise: Noise, **how: Any) -> Any:
        self._noise = noise
        try:
            return self.ddim_sampling(cond, shape, **how)
        finally:
            del self._noise

    @torch.no_grad()
    def ddim_sampling(
        self,
        cond: Conditioning,
        shape: Sequence[int],
        x_T: Tensor | None = None,
        ddim_use_original_steps: bool = False,
        callback: Callable[[int], None] | None = None,
        timesteps: int | None = None,
        **asked: Any,
    ) -> tuple[Tensor, Intermediates]:
        """Sample latents of `shape` (b, c, h, w) in the steps of `make_schedule`.

        Args:
            ddim_use_original_steps: take every training time instead.
            timesteps: run the last steps only: of K steps min(timesteps, K) - 1, one less than the number
                says, as in the reference; of all training times exactly `timesteps`.
            asked: mask, x0, img_callback, and other keywords of `sample`.
        """
        if timesteps is not None:
            total = len(self._steps(ddim_use_original_steps))
            timesteps = min(timesteps, total) - (not ddim_use_original_steps)
            if timesteps < 0:
                raise InputError("timesteps is below 1: expected a number of steps")
        return super()._sampling(
            cond,
            shape,
            noise=self._noise,
            x_T=x_T,
            all_times=ddim_use_original_steps,
            num_left=timesteps,
            callback=callback,
            **asked,
        )

    def _loop(
        self,
        all_times: bool,
        cond: Conditioning,
        x_t: Tensor,
        how: _How,
        scales: Sequence[float] | None = None,
        start: int = 0,
        **loop: Any,
    ) -> Iterator[Step]:
        """Return the steps from `start` on, each taken by `p_sample_ddim`."""
        table = self._steps(all_times)

        def take(i: int, x_t: Tensor) -> tuple[Tensor, Tensor]:
            scale = how.unconditional_guidance_scale if scales is None else scales[i - start]
            keywords = vars(replace(how, unconditional_guidance_scale=scale))   # asdict would copy tensors
            t, index = batch_of(table.timesteps[i], x_t), len(table) - 1 - i
            return self.p_sample_ddim(x_t, cond, t, index=index, use_original_steps=all_times, **keywords)

        unused = self._guided(None, 1.0)      # the step calls the network itself
        return sample_loop(_Overridable(table, take), unused, x_t, cond, start=start, **loop)

    @torch.no_grad()
    def p_sample_ddim(
        self,
        x: Tensor,
        c: Conditioning,
        t: Tensor,
        index: int,
        repeat_noise: bool = False,
        use_original_steps: bool = False,
        **how: Any,
    ) -> tuple[Tensor, Tensor]:
        """Take one step from x (b, c, h, w), latents at row `index` of the table; return (x_prev, x_0).

        Args:
            t: (b,) what the network is passed as the time, `ddim_timesteps[index]` in sampling.
            index: row, counted from the least noisy; of all training times with `use_original_steps`.
            repeat_noise: add the same noise to all samples.
            how: the fields of `_How`.
        """
        how = _How(**how)
        table, index = self._steps(use_original_steps), int(index)
        prediction = self._denoiser(how)[1](x, t, c)
        if self.model.parameterization == "eps":    # x_0 by the row's noise, whatever `t` is
            abar = float(table.table.alphas_cumprod[index])
            prediction = from_eps(x, prediction.eps, abar**0.5, (1 - abar) ** 0.5)
        table.correct_x_0 = self._correction(how.quantize_denoised, how.dynamic_threshold)
        table.temperature, table.noise_dropout = how.temperature, how.noise_dropout
        noise = self._noise(x[:1]).expand_as(x) if repeat_noise else self._noise(x)
        return table.update(len(table) - 1 - index, prediction, noise)

    @torch.no_grad()
    def encode(
        self,
        x0: Tensor,
        c: Conditioning,
        t_enc: int,
        use_original_steps: bool = False,
        return_intermediates: int | None = None,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning = None,
        callback: Callable[[int], None] | None = None,
        times: str | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Invert `t_enc` steps: from clean latents to the noise they came from.

        Args:
            times: what the network is passed as the time, "index", "row" or "before", see DDIMInversion. None
                is what the reference passes, "index" (and "row" in `cldm.ddim_hacked`), for a model that
                predicts eps; for others, which the reference cannot invert, it is "before". With "index"
                `decode` does not come back to `x0`; the two others are about as exact as each other.

        Returns:
            The noisy latents, and {"x_encoded", "intermediate_steps"} with, when `return_intermediates` is a
            number of them, "intermediates".
        """
        table = self._steps(use_original_steps)
        if times is None:
            times = self.inversion_times if self.model.parameterization == "eps" else "before"
        inversion = DDIMInversion(self.schedule, table.num_steps, published=table.published, asked=times)
        if not 0 <= t_enc <= len(inversion):
            raise InputError(f"t_enc is {t_enc}: expected 0 to {len(inversion)} sampling steps")
        every = max(1, t_enc // return_intermediates) if return_intermediates else 0
        guided = self._guided(unconditional_conditioning, unconditional_guidance_scale)
        x_t, kept, at = x0, [], []
        for step in islice(sample_loop(inversion, guided, x0, c), t_enc):
            x_t = step.x_t
            if every and (step.i % every == 0 or step.i >= t_enc - 2):
                kept.append(x_t)
                at.append(step.i)
            if callback:
                callback(step.i)
        out: dict[str, Any] = {"x_encoded": x_t, "intermediate_steps": at}
        return x_t, out | ({"intermediates": kept} if return_intermediates else {})


class ControlDDIMSampler(DDIMSampler):
    """DDIM as ControlNet's `cldm.ddim_hacked` has it: guidance in two calls, and other times in `encode`."""

    inversion_times = "row"
    guidance = SeparateCalls


class PLMSSampler(_TableSampler):
    """PLMS by its reference name; for eps the reference numbers, and right for v."""

    name = "plms"


class DPMSolverSampler(_PublishedSampler):
    """DPM-Solver++ (2M) by its reference name."""

    name = "dpm"

    def __init__(self, model: Any, device: torch.device | str | None = None):
        """Wrap a model; noise is drawn on `device`, the model's when None."""
        super().__init__(model, device=device)

    def make_schedule(self, num_steps: int) -> None:
        """Choose the steps for `stochastic_encode` and `decode`."""
        self._make(num_steps, 0.0)
