"""What every picture-making task shares: settings, denoising, decoding."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.backends.device import autocast
from ldm.diffusion.conditioning import Conditioning, take
from ldm.diffusion.guidance import Guidance, within
from ldm.diffusion.prediction import Denoise, Prediction, denoiser
from ldm.errors import InputError, LdmError
from ldm.imaging.padding import Frame
from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.samplers import make_sampler
from ldm.samplers.base import Noise
from ldm.samplers.loop import KeyedNoise, Step, sample_loop
from ldm.tasks.guard import SampleState

logger = logging.getLogger(__name__)

# Wraps the iterator of steps of one batch, of known length: a progress bar, a preview, a cancellation.
Track = Callable[[Iterator[Step], int], Iterable[Step]]


@dataclass(frozen=True)
class Settings:
    """How to sample.

    Args:
        sampler: a name of ldm.samplers.SAMPLERS.
        num_steps: network evaluations. Without a spacing DDIM, PLMS and DPM take the published steps, which
            may be more (30 gives 31).
        spacing: where the steps are put, a name of ldm.diffusion.spacing.SPACINGS; None is the sampler's own.
        eta: noise of the steps, 0 deterministic, 1 as much as DDPM; None is the sampler's own.
        guidance_scale: exactly 1 leaves out the unconditional pass.
        negative_prompt: what the unconditional pass is told.
        guidance_rescale: 0 (off) to 1, see ldm.diffusion.guidance, as for the next two.
        guidance_interval: (low, high), the training times with guidance, 0 clean to 1 noise; None is all.
        dynamic_threshold: the percentile of |x_0|, above 0 to 1; None is off.
        rng: where random numbers come from, a name of ldm.tasks.draws.RNGS.
        exact: give the networks one sample at a time, so that no bit of a picture depends on its batch.
        dtype: what the networks compute in.
    """

    sampler: str = "ddim"
    num_steps: int = 50
    spacing: str | None = None
    eta: float | None = None
    guidance_scale: float = 9.0
    negative_prompt: str = ""
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    dynamic_threshold: float | None = None
    rng: str = "reference"
    exact: bool = False
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Batch:
    """Pictures made together, and where they stand in the run."""

    prompts: list[str]
    images: Tensor  # (b, 3, height, width) float32 on the CPU, about -1..1, not clamped
    latents: Tensor  # (b, c, h, w) scaled, of the padded size, on the model's device
    iteration: int  # which repetition of the whole prompt list
    index: int  # how many batches the run drew before this one
    seeds: tuple[int, ...] = ()  # what each picture can be made again from alone; empty where it cannot


class Diffuser:
    """A text-to-image model with its sampler set up.

    Attributes:
        state: where sampling stands, after every step; None before the first batch.
    """

    def __init__(
        self, model: LatentDiffusion, settings: Settings, batch_size: int, track: Track | None = None
    ):
        key = model.model.conditioning_key
        if key != "crossattn":
            raise InputError(
                f"this model needs more than a prompt (conditioning_key {key!r}); "
                "expected a text-to-image model (crossattn)"
            )
        self.model = model
        self.settings = settings
        self.batch_size = batch_size
        self.track = track or (lambda steps, total: steps)
        self.sampler = make_sampler(
            settings.sampler, model.schedule, settings.num_steps, eta=settings.eta, spacing=settings.spacing
        )
        self.guidance = Guidance(
            settings.guidance_scale,
            settings.guidance_rescale,
            settings.guidance_interval,
            settings.dynamic_threshold,
        )
        self._denoise = denoiser(model.apply_model, model.schedule, model.parameterization)
        if settings.exact:
            self._denoise = one_by_one(self._denoise)
        self.state: SampleState | None = None
        self._uncond: Tensor | None = None
        self._said: int | None = None

    def latent_shape(self, frame: Frame) -> tuple[int, int, int]:
        """Return (c, h, w) of the latents of a framed picture."""
        factor = self.model.downsampling_factor
        return self.model.channels, frame.inner_height // factor, frame.inner_width // factor

    @torch.no_grad()
    def text(self, prompts: list[str]) -> tuple[Tensor, Tensor | None]:
        """Return the contexts (b, n, w) of the prompts and of the unconditional pass, or None without one."""
        with autocast(self.model.device, self.settings.dtype):
            cond = self._encoded(prompts)
            return cond, take(self._unconditional(), slice(len(prompts)))

    @torch.no_grad()
    def sample(
        self,
        x_t: Tensor,
        cond: Conditioning,
        uncond: Conditioning,
        noise: Noise | KeyedNoise,
        *,
        start: int = 0,
        memory: Sequence[Tensor] = (),
    ) -> Tensor:
        """Denoise x_t (b, c, h, w), which stands before step `start`; returns latents (b, c, h, w).

        Args:
            memory: the sampler's memory before that step, where an earlier run stopped.
        """
        self._say_cost(start)
        self.state = SampleState(start, x_t, tuple(memory))
        parameterization = self.model.parameterization
        denoise = self.guidance.around(self._denoise, uncond, self.model.schedule, parameterization)
        with autocast(self.model.device, self.settings.dtype):
            steps = sample_loop(self.sampler, denoise, x_t, cond, noise=noise, start=start, memory=memory)
            for _ in self.track(self._watched(steps), len(self.sampler) - start):
                pass
        return self.state.x_t

    def _watched(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Keep the state up to date, before whoever tracks the steps sees each."""
        for step in steps:
            self.state = SampleState(step.i + 1, step.x_t, tuple(self.sampler.memory))
            yield step

    @torch.no_grad()
    def encode(self, images: Tensor) -> DiagonalGaussianDistribution:
        """Return what the autoencoder makes of images (n, 3, H, W)."""
        with autocast(self.model.device, self.settings.dtype):
            return self.model.encode_first_stage(images.to(self.model.device))

    @torch.no_grad()
    def drawn(self, posterior: DiagonalGaussianDistribution, noise: Tensor) -> Tensor:
        """Return scaled latents, one row for every row of noise (b, c, h, w); n is 1 or b."""
        with autocast(self.model.device, self.settings.dtype):
            return self.model.get_first_stage_encoding(posterior, noise).float()

    @torch.no_grad()
    def decode(self, latents: Tensor, frame: Frame) -> Tensor:
        """Return images (b, 3, height, width) in float32 on the CPU.

        Raises: LdmError when they hold NaN or infinity, which would be saved as black.
        """
        with autocast(self.model.device, self.settings.dtype):
            parts = [self.model.decode_first_stage(latents[part]) for part in self._parts(len(latents))]
            images = frame.crop(torch.cat(parts)).float().cpu()
        if not torch.isfinite(images).all():
            raise LdmError(
                "the picture holds values that are not finite; half precision may have overflowed "
                "(--precision full), or the weights do not fit the config"
            )
        return images

    def _say_cost(self, start: int) -> None:
        """Log what a batch costs, once for each cost."""
        cost = self.sampler.evaluations(start)
        if cost == self._said:
            return
        self._said = cost
        name, asked = self.settings.sampler, self.settings.num_steps
        odd = self.sampler.evaluations() != asked
        why = f" (published times; --sampler {name} takes exactly {asked} for {asked} steps)" if odd else ""
        logger.info("%s: %d network evaluations a batch%s", name, cost, why)
        if self.guidance.interval is not None and self.guidance.scale != 1:
            times = torch.tensor(self.sampler.timesteps[start:], device="cpu")
            count = int(within(self.guidance.interval, times, self.model.schedule).sum())
            (logger.info if count else logger.warning)("guidance in %d of %d steps", count, len(times))

    def _unconditional(self) -> Tensor | None:
        if self.settings.guidance_scale == 1:
            return None
        if self._uncond is None:  # the same text for every batch
            self._uncond = self._encoded([self.settings.negative_prompt] * self.batch_size)
        return self._uncond

    def _encoded(self, prompts: list[str]) -> Tensor:
        parts = [prompts[part] for part in self._parts(len(prompts))]
        return torch.cat([self.model.get_learned_conditioning(part) for part in parts])

    def _parts(self, size: int) -> list[slice]:
        """Return which samples of a batch the networks see together."""
        return [slice(i, i + 1) for i in range(size)] if self.settings.exact else [slice(size)]


def one_by_one(denoise: Denoise) -> Denoise:
    """Ask about one sample at a time: some kernels round differently in batches of other sizes."""

    def alone(x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        samples = [slice(i, i + 1) for i in range(len(x_t))]
        predictions = [denoise(x_t[sample], t[sample], take(cond, sample)) for sample in samples]
        return Prediction(*(torch.cat(parts) for parts in zip(*predictions, strict=True)))

    return alone


def batches(prompts: list[str], batch_size: int, n_iter: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (iteration, prompts of a batch): the whole list n_iter times, the last batch maybe short."""
    for iteration in range(n_iter):
        for first in range(0, len(prompts), batch_size):
            yield iteration, prompts[first : first + batch_size]
