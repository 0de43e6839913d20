"""The published sampler classes, called as third-party code calls them.

    samples, intermediates = DDIMSampler(model).sample(50, 4, (4, 64, 64), cond, ...)

They are shells over the samplers and the loop of this package. `model` is any object with `apply_model`,
`alphas_cumprod` and `parameterization`. Every argument either works or raises an InputError; none is
ignored.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.cond import Cond
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import Denoise, Prediction, denoiser, from_eps
from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.samplers import DDIM, DDIMInversion, Sampler, Step, make_sampler, sample_loop
from ldm.samplers.base import Noise
from ldm.samplers.loop import gaussian

logger = logging.getLogger(__name__)

Intermediates = dict[str, list[Tensor]]
Conditioning = Cond | Tensor | list[Any] | dict[str, Any] | None


@dataclass(frozen=True)
class Published:
    """A conditioning in the caller's own form, which the model gets unchanged: a tensor, list or dict.

    It has what ClassifierFreeGuidance needs: the methods of Cond.
    """

    value: Any

    @classmethod
    def of(cls, value: Conditioning) -> "Cond | Published":
        return value if isinstance(value, Cond) else cls(value)

    def count(self) -> int | None:
        """Return the number of samples that its tensors describe; None without tensors.

        Raises: InputError where they disagree.
        """
        sizes = {len(x) for x in _tensors(self.value)}
        if len(sizes) > 1:
            raise InputError(
                f"the parts of a conditioning describe {sorted(sizes)} samples: expected one number"
            )
        return sizes.pop() if sizes else None

    def join(self, other: "Published") -> "Published | None":
        """Return both along the batch; None where c_concat is None in one alone, as in guess mode.

        Raises: InputError where their forms differ.
        """
        first, second = self.value, other.value
        if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
            if (first.get("c_concat") is None) != (second.get("c_concat") is None):
                return None
        return Published(_join(first, second, "conditioning"))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [x for part in parts for x in _tensors(part)]


def _join(first: Any, second: Any, where: str) -> Any:
    """Join two values of the same form along the batch; `where` names the part in an InputError."""
    if first is None and second is None:
        return None
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return {name: _join(first[name], second[name], f"{where}[{name!r}]") for name in second}
    lists = isinstance(first, (list, tuple)) and isinstance(second, (list, tuple))
    if lists and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return [_join(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(pairs)]
    both = isinstance(first, Tensor) and isinstance(second, Tensor)
    if not both or first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"{where}: the unconditional part is {_form(first)}, the conditional part {_form(second)}; "
            "expected the same names, lengths and shapes"
        )
    return torch.cat([first, second])


def _form(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict of {sorted(value)}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


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


class _PublishedSampler:
    """What the three published classes have in common."""

    name: str

    def __init__(self, model: Any, schedule: str = "linear", device: torch.device | str | None = None):
        """Wrap a model.

        Args:
            schedule: only "linear", the published default: the noise schedule is the model's own.
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
        temperature: float = 1.0,
        noise_dropout: float = 0.0,
        score_corrector: Any = None,
        corrector_kwargs: dict[str, Any] | None = None,
        verbose: bool = True,
        x_T: Tensor | None = None,
        log_every_t: int = 100,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Conditioning = None,
        dynamic_threshold: float | None = None,
        ucg_schedule: Sequence[float] | None = None,
    ) -> tuple[Tensor, Intermediates]:
        """Sample `batch_size` latents of `shape` (c, h, w) in about S steps.

        Args:
            callback: called with the index of every step.
            normals_sequence: used in turn instead of random numbers, in the order in which they are drawn.
            img_callback: called with x_0 and the index of every step.
            quantize_x0: replace each x_0 by its nearest codes (`model.first_stage_model.quantize`).
            mask: 1 where `x0` is to stay.
            score_corrector: its `modify_score(model, eps, x, t, c, **corrector_kwargs)` replaces the noise.
            verbose: log the number of steps.
            log_every_t: every how many steps the intermediates are kept; the first always is.
            dynamic_threshold: scale each x_0 down to this root mean square where it is larger.
            ucg_schedule: the guidance scale of each step, instead of one for all.

        Returns:
            The samples, and {"x_inter": [x_T, ...], "pred_x0": [x_T, ...]}.
        """
        _check_batch(conditioning, batch_size, "conditioning")
        _check_batch(unconditional_conditioning, batch_size, "unconditional_conditioning")
        correct_x_0 = self._correction(quantize_x0, dynamic_threshold)
        sampler = self._make(S, eta, correct_x_0=correct_x_0, **self._options(temperature, noise_dropout))
        _check_scales(ucg_schedule, len(sampler), unconditional_conditioning)
        if verbose:
            logger.info("%s: %d steps, shape %s", type(self).__name__, len(sampler), (batch_size, *shape))
        noise = gaussian if normals_sequence is None else _replay(normals_sequence)
        x_t = noise(torch.empty(batch_size, *shape, device=self.device)) if x_T is None else x_T
        guided = self._guided(unconditional_conditioning, unconditional_guidance_scale)
        denoise = self._corrected(guided, score_corrector, corrector_kwargs)
        cond = Published.of(conditioning)
        steps = sample_loop(sampler, denoise, x_t, cond, noise=noise, keep_mask=mask, keep_x_0=x0)
        intermediates: Intermediates = {"x_inter": [x_t], "pred_x0": [x_t]}
        for step in _with_scales(steps, guided, ucg_schedule):
            x_t = step.x_t
            if callback:
                callback(step.i)
            if img_callback:
                img_callback(step.x_0, step.i)
            index = len(sampler) - 1 - step.i
            if index % log_every_t == 0 or step.i == 0:
                intermediates["x_inter"].append(x_t)
                intermediates["pred_x0"].append(step.x_0)
        return x_t, intermediates

    @torch.no_grad()
    def stochastic_encode(
        self,
        x0: Tensor,
        t: int | Tensor,
        use_original_steps: bool = False,
        noise: Tensor | None = None,
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
        sampler = self._steps(use_original_steps)
        start = sampler.start_index(int(t_start))
        guided = self._guided(unconditional_conditioning, unconditional_guidance_scale)
        x_t = x_latent
        for step in sample_loop(sampler, guided, x_latent, Published.of(cond), start=start):
            x_t = step.x_t
            if callback:
                callback(step.i - start)
        return x_t

    def _make(self, num_steps: int, eta: float, **options: Any) -> Sampler:
        """Build the sampler and keep it for encoding and decoding."""
        self.sampler = make_sampler(self.name, self.schedule, num_steps, eta=eta, **options)
        return self.sampler

    def _steps(self, all_times: bool = False) -> Sampler:
        if all_times:
            return DDIM(self.schedule, self.ddpm_num_timesteps, published="all")
        if self.sampler is None:
            raise InputError("no steps have been chosen: call make_schedule(num_steps) or sample first")
        return self.sampler

    def _options(self, temperature: float, noise_dropout: float) -> dict[str, float]:
        """Return what the sampler's class takes of these; samplers without added noise take neither."""
        if temperature != 1 or noise_dropout != 0:
            raise InputError(
                f"temperature {temperature} and noise_dropout {noise_dropout} change the noise of steps, "
                f"and {self.name} adds none: expected 1 and 0 (DDIM takes others)"
            )
        return {}

    def _guided(self, uncond: Conditioning, scale: float) -> ClassifierFreeGuidance:
        if uncond is None and scale != 1:
            raise InputError(f"guidance scale {scale} needs unconditional_conditioning, or must be 1")
        denoise = denoiser(self._apply_model, self.schedule, self.model.parameterization)
        return ClassifierFreeGuidance(denoise, None if uncond is None else Published.of(uncond), scale)

    def _apply_model(self, x_t: Tensor, t: Tensor, cond: Cond | Published) -> Tensor:
        return self.model.apply_model(x_t, t, cond.value if isinstance(cond, Published) else cond)

    def _corrected(self, denoise: Denoise, corrector: Any, kwargs: dict[str, Any] | None) -> Denoise:
        """Let a published score corrector change the guided noise."""
        if corrector is None:
            if kwargs:
                raise InputError("corrector_kwargs are given without a score_corrector")
            return denoise

        def corrected(x_t: Tensor, t: Tensor, cond: Any) -> Prediction:
            eps = denoise(x_t, t, cond).eps
            given = cond.value if isinstance(cond, Published) else cond
            eps = corrector.modify_score(self.model, eps, x_t, t, given, **(kwargs or {}))
            return from_eps(x_t, eps, *self.schedule.alpha_sigma(t, x_t))

        return corrected

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
        self.ddim_timesteps = np.array(sampler.timesteps[::-1])
        self.ddim_alphas = torch.from_numpy(abar).float().to(self.device)
        self.ddim_alphas_prev = prev
        self.ddim_sigmas = torch.from_numpy(sigmas).float().to(self.device)
        self.ddim_sqrt_one_minus_alphas = (1 - self.ddim_alphas).sqrt()
        return sampler


class DDIMSampler(_TableSampler):
    """DDIM by its published name."""

    name = "ddim"

    def _options(self, temperature: float, noise_dropout: float) -> dict[str, float]:
        return {"temperature": temperature, "noise_dropout": noise_dropout}

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
    ) -> tuple[Tensor, dict[str, Any]]:
        """Invert `t_enc` steps: from clean latents to the noise they came from.

        Returns:
            The noisy latents, and {"x_encoded", "intermediate_steps"} with, when `return_intermediates` is a
            number of them, "intermediates".
        """
        table = self._steps(use_original_steps)
        inversion = DDIMInversion(self.schedule, table.num_steps, published=table.published)
        if not 0 <= t_enc <= len(inversion):
            raise InputError(f"t_enc is {t_enc}: expected 0 to {len(inversion)} sampling steps")
        every = max(1, t_enc // return_intermediates) if return_intermediates else 0
        guided = self._guided(unconditional_conditioning, unconditional_guidance_scale)
        x_t, kept, at = x0, [], []
        for step in islice(sample_loop(inversion, guided, x0, Published.of(c)), t_enc):
            x_t = step.x_t
            if every and (step.i % every == 0 or step.i >= t_enc - 2):
                kept.append(x_t)
                at.append(step.i)
            if callback:
                callback(step.i)
        out: dict[str, Any] = {"x_encoded": x_t, "intermediate_steps": at}
        return x_t, out | ({"intermediates": kept} if return_intermediates else {})


class PLMSSampler(_TableSampler):
    """PLMS by its published name; for eps the published numbers, and right for v."""

    name = "plms"


class DPMSolverSampler(_PublishedSampler):
    """DPM-Solver++ (2M) by its published name."""

    name = "dpm"

    def __init__(self, model: Any, device: torch.device | str | None = None):
        """Wrap a model; noise is drawn on `device`, the model's when None."""
        super().__init__(model, device=device)

    def make_schedule(self, num_steps: int) -> None:
        """Choose the steps for `stochastic_encode` and `decode`."""
        self._make(num_steps, 0.0)
