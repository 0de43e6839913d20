"""What every picture-making task shares: settings, denoising, decoding."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.cond import Cond, within
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.prediction import Denoise, Prediction, denoiser
from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError
from ldm.imaging.colour import to_uint8
from ldm.imaging.padding import Frame
from ldm.imaging.paste import Paste
from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.tiled_decoder import decode_tiled
from ldm.prompts.encoding import PromptEncoder
from ldm.samplers import make_sampler
from ldm.samplers.base import Noise, Sampler
from ldm.samplers.loop import KeyedNoise, Step, sample_loop
from ldm.tasks.draws import BatchDraws
from ldm.tasks.guard import Guard, KeptDraws, SampleState, are_finite
from ldm.tasks.latents import Position, StoppedAt, restored
from ldm.tasks.tiles import WHOLE, Tiling, tiled

logger = logging.getLogger(__name__)

# Wraps the iterator of steps of one batch, of known length: a progress bar, a preview. Where it ends before
# the steps do, sampling stops there (StoppedAt).
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
        zero_snr: rescale the noise schedule to end in pure noise; only for models that predict v.
        guidance_scale: exactly 1 leaves out the unconditional pass.
        negative_prompt: what the unconditional pass is told.
        prompt_syntax: how prompts are read, a name of ldm.prompts.syntaxes.SYNTAXES.
        clip_skip: 1 is the text encoder's last block, 2 the one before; None is the model's own.
        long_prompts: "chunk" encodes every token, "cut" as many as the text encoder takes, as published.
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
    zero_snr: bool = False
    guidance_scale: float = 9.0
    negative_prompt: str = ""
    prompt_syntax: str = "plain"
    clip_skip: int | None = None
    long_prompts: str = "chunk"
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
    computed_in: dict[str, str] = field(default_factory=dict)  # see ldm.tasks.guard.Guard.record
    offset: int = 0  # place of the first of these in the batch that they were made in
    paste: Paste | None = None  # the picture whose pixels come back where nothing was to be painted

    def pictures(self) -> list[np.ndarray]:
        """Return each as 8 bits (height, width, 3), or 4 channels where the picture that comes back has."""
        images = to_uint8(self.images)
        return list(images) if self.paste is None else [self.paste.onto(image) for image in images]


class Part(NamedTuple):
    """The prompts of one batch, and where it stands in the run."""

    index: int  # batches before this one
    iteration: int  # which repetition of the whole prompt list
    first: int  # pictures before this batch
    prompts: list[str]


class Keep(NamedTuple):
    """What is to stay of a picture while the rest is painted: for models that do not see the mask."""

    mask: Tensor  # (1 or b, 1, h, w), 1 where x_0 stays
    x_0: Tensor  # (b, c, h, w) scaled latents


class Diffuser:
    """A model with its sampler set up.

    Args:
        accepts: the ways into the UNet (conditioning_key) that the task has inputs for.
        tiling: what the networks see of the latents at once.

    Attributes:
        state: where sampling stands, after every step; None before the first batch.
        resume: where an earlier run stopped, None if this one begins afresh.
        prompts: of the whole run, known from `batches` on.
        guard: runs the networks, and says what they compute in.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        settings: Settings,
        batch_size: int,
        track: Track | None = None,
        resume: Position | None = None,
        accepts: tuple[str | None, ...] = ("crossattn",),
        tiling: Tiling = WHOLE,
    ):
        key = model.model.conditioning_key
        if key not in accepts:
            more = " needs more than a prompt" if accepts == ("crossattn",) else " is for another task"
            more = " takes no prompt" if key is None else more
            raise InputError(
                f"this model{more} (conditioning_key {key!r}); expected {' or '.join(map(str, accepts))}"
                + (", a text-to-image model" if accepts == ("crossattn",) else "")
            )
        self.model = model
        self.settings = settings
        self.batch_size = batch_size
        self.track = track or (lambda steps, total: steps)
        self.resume = resume
        self.prompts: list[str] = []
        schedule = model.schedule
        self.schedule = schedule.with_zero_terminal_snr() if settings.zero_snr else schedule
        self.sampler = _sampler(self.schedule, settings)
        self.guidance = Guidance(
            settings.guidance_scale,
            settings.guidance_rescale,
            settings.guidance_interval,
            settings.dynamic_threshold,
        )
        self._prompts = PromptEncoder(
            model, settings.prompt_syntax, settings.clip_skip, settings.long_prompts
        )
        self.guard = Guard(model, settings.dtype)
        self._lengths: list[int] = []  # tokens of each context of the batch, were it alone
        self.tiling = tiling
        network = tiled(self.guard.apply_model, tiling, model.model.diffusion_model.downsampling_factor)
        together = denoiser(network, self.schedule, model.parameterization)
        self._denoise = apart(together, self._lengths, settings.exact)
        self.state: SampleState | None = None
        self._unconds: list[Tensor] = []
        self._said: int | None = None

    def with_steps(self, num_steps: int) -> "Diffuser":
        """Return one for a second pass over the same batches, which shares all but the sampler."""
        second = copy(self)
        second.settings = replace(self.settings, num_steps=num_steps)
        second.sampler = _sampler(self.schedule, second.settings)
        second.state = second._said = None
        return second

    def t_enc(self, strength: float) -> int:
        """Return how many steps, the last ones, a strength from 0 to 1 takes; warn where it comes to none."""
        t_enc = int(strength * self.sampler.num_steps)
        if strength > 0 and not t_enc:
            said = "strength %g of %d steps leaves none to take: nothing is repainted"
            logger.warning(said, strength, self.sampler.num_steps)
        return t_enc

    def batches(self, prompts: list[str], n_iter: int) -> Iterator[Part]:
        """Yield the batches of a run, the whole list n_iter times; those done before a stop are left out."""
        self.prompts = prompts
        first = 0
        for index, (iteration, texts) in enumerate(batches(prompts, self.batch_size, n_iter)):
            if self.resume is None or first >= self.resume.first:
                yield Part(index, iteration, first, texts)
            first += len(texts)

    def latent_shape(self, frame: Frame) -> tuple[int, int, int]:
        """Return (c, h, w) of the latents of a framed picture."""
        factor = self.model.downsampling_factor
        height, width = (frame.scale * side for side in (frame.inner_height, frame.inner_width))
        return self.model.channels, height // factor, width // factor

    @torch.no_grad()
    def text(self, prompts: list[str]) -> tuple[Tensor | None, Tensor | None]:
        """Return the contexts (b, n, w) of the prompts and of the unconditional pass, or None without one.

        Both are None of a model without a text encoder.
        """
        if self.model.cond_stage_model is None:
            return None, None
        what, encode = "encoding the prompts", lambda: self._contexts(prompts)
        there = lambda contexts: [x for x in contexts if x is not None]  # noqa: E731
        cond, uncond = self.guard.run("text encoder", what, encode, there, self._forget_texts)
        return cond, uncond

    @torch.no_grad()
    def sample(
        self,
        x_t: Tensor,
        cond: Cond | Tensor | None,
        uncond: Cond | Tensor | None,
        noise: Noise | KeyedNoise,
        *,
        start: int = 0,
        memory: Sequence[Tensor] = (),
        keep: Keep | None = None,
    ) -> Tensor:
        """Denoise x_t (b, c, h, w), which stands before step `start`; returns latents (b, c, h, w).

        In the batch that `resume` is of, that position takes the place of x_t, start and memory.

        Args:
            memory: the sampler's memory before that step, where an earlier run stopped.
            keep: before every step this part is put back, at that step's noise.

        Raises: StoppedAt, where `track` ended before the steps.
        """
        cond = self.model.as_cond(cond)
        uncond = None if uncond is None else self.model.as_cond(uncond)
        self.state = SampleState(start, x_t, tuple(memory))
        if self.resume is not None and self.resume.is_of(noise):
            self.state = restored(self.resume, noise, x_t, len(self.sampler))
            self.guard.go_on(self.state)
        start = self.state.step
        self._say_cost()
        parameterization = self.model.parameterization
        denoise = self.guidance.around(self._denoise, uncond, self.schedule, parameterization)
        for _ in self.track(self._steps(denoise, cond, KeptDraws(noise), keep), len(self.sampler) - start):
            pass
        if self.state.step < len(self.sampler) and isinstance(noise, BatchDraws):
            state = noise.draws.state()
            raise StoppedAt(Position(self.prompts, noise.first, noise.stage, self.state, state))
        return self.state.x_t

    def _steps(
        self, denoise: Denoise, cond: Cond, noise: KeyedNoise, keep: Keep | None = None
    ) -> Iterator[Step]:
        """Yield the steps from `state`, each kept there before it is seen; a bad one is taken again."""
        kept = {} if keep is None else {"keep_mask": keep.mask, "keep_x_0": keep.x_0}
        while (start := self.state.step) < len(self.sampler):
            loop = sample_loop(
                self.sampler, denoise, self.state.x_t, cond,
                noise=noise, start=start, memory=self.state.memory, **kept,
            )  # fmt: skip
            for step in loop:
                if not are_finite(step.x_t, step.x_0):
                    where = f"step {step.i + 1} of {len(self.sampler)}"
                    again = f"going on in float32 from step {step.i + 1}"
                    self.guard.widen("UNet", where, step.x_t, step.x_0, again=again)
                    break
                memory, widened = tuple(self.sampler.memory), self.guard.has_widened("UNet")
                self.state = SampleState(step.i + 1, step.x_t, memory, widened)
                yield step

    @torch.no_grad()
    def encode(self, images: Tensor) -> DiagonalGaussianDistribution:
        """Return what the autoencoder makes of images (n, 3, H, W)."""
        images = images.to(self.model.device)
        return self.guard.run(
            "autoencoder",
            "encoding the picture",
            lambda: self._posterior(images),
            lambda posterior: [posterior.parameters],
        )

    @torch.no_grad()
    def drawn(self, posterior: DiagonalGaussianDistribution, noise: Tensor) -> Tensor:
        """Return scaled latents, one row for every row of noise (b, c, h, w); n is 1 or b."""
        return self.model.get_first_stage_encoding(posterior, noise).float()

    @torch.no_grad()
    def decode(self, latents: Tensor, frame: Frame) -> Tensor:
        """Return images (b, 3, height, width) in float32 on the CPU, all of them finite.

        Raises: BadPictureError where they are not in float32 either.
        """

        def decode() -> Tensor:
            parts = [self._decoded(latents[part], frame) for part in self._parts(len(latents))]
            return torch.cat(parts)

        return self.guard.run("autoencoder", "decoding", decode)

    def batch(
        self, part: Part, noise: BatchDraws, latents: Tensor, images: Tensor, paste: Paste | None = None
    ) -> Batch:
        """Return what became of a part: images (b, 3, height, width) of its latents."""
        where, done_in = (part.iteration, part.index), self.guard.record()
        return Batch(part.prompts, images, latents, *where, noise.seeds, done_in, paste=paste)

    def _say_cost(self) -> None:
        """Log what the batch costs from `state` on, once for each cost."""
        start = self.state.step
        cost = self.sampler.evaluations(start, self.state.memory)
        if cost == self._said:
            return
        self._said = cost
        name, asked = self.settings.sampler, self.settings.num_steps
        odd = self.sampler.evaluations() != asked
        why = f" (published times; --sampler {name} takes exactly {asked} for {asked} steps)" if odd else ""
        logger.info("%s: %d network evaluations a batch%s", name, cost, why)
        if self.guidance.interval is not None and self.guidance.scale != 1:
            times = torch.tensor(self.sampler.timesteps[start:], device="cpu")
            count = int(within(self.guidance.interval, times, self.schedule.num_timesteps).sum())
            (logger.info if count else logger.warning)("guidance in %d of %d steps", count, len(times))

    def _contexts(self, prompts: list[str]) -> list[Tensor | None]:
        conds = self._encoded(prompts)
        lengths = [cond.shape[1] for cond in conds]
        if self.settings.guidance_scale == 1:
            contexts = [torch.cat(self._prompts.levelled(conds)), None]
        else:
            unconds = self._unconditional()[: len(conds)]
            lengths = [max(length, unconds[0].shape[1]) for length in lengths]
            levelled = self._prompts.levelled([*conds, *unconds])
            contexts = list(torch.cat(levelled).chunk(2))
        self._lengths[:] = lengths
        return contexts

    def _unconditional(self) -> list[Tensor]:
        if not self._unconds:  # the same text for every batch
            negative = [self.settings.negative_prompt] * self.batch_size
            self._unconds = self._encoded(negative, "negative prompt")
        return self._unconds

    def _forget_texts(self) -> None:
        self._unconds = []
        self._prompts.forget()

    def _encoded(self, prompts: list[str], name: str = "prompt") -> list[Tensor]:
        """Return the context (1, n, w) of each."""
        parts = [prompts[part] for part in self._parts(len(prompts))]
        return [context for part in parts for context in self._prompts.contexts(part, name)]

    def _posterior(self, images: Tensor) -> DiagonalGaussianDistribution:
        parts = [self.model.encode_first_stage(images[part]) for part in self._parts(len(images))]
        return DiagonalGaussianDistribution(torch.cat([posterior.parameters for posterior in parts]))

    def _parts(self, size: int) -> list[slice]:
        """Return which samples of a batch the networks see together."""
        apart = self.settings.exact or self.tiling.apart
        return [slice(i, i + 1) for i in range(size)] if apart else [slice(size)]

    def _decoded(self, latents: Tensor, frame: Frame) -> Tensor:
        tile, model = self.tiling.decoder_tile, self.model
        if tile is None:
            images = model.decode_first_stage(latents)
        else:
            images = decode_tiled(model.first_stage_model, latents / model.scale_factor, tile)
        return frame.crop(images).float().cpu()


def _sampler(schedule: Schedule, settings: Settings) -> Sampler:
    return make_sampler(
        settings.sampler, schedule, settings.num_steps, eta=settings.eta, spacing=settings.spacing
    )


def apart(denoise: Denoise, lengths: list[int], exact: bool) -> Denoise:
    """Ask about samples apart where they would change each other, so that each is as it is alone.

    A context that was padded to the length of a longer one means something else: contexts of one length are
    asked about together, without that padding.

    Args:
        lengths: of the context of each sample of a batch, of which guidance asks about a multiple.
        exact: ask about every sample by itself, as some kernels round differently in other batches.
    """

    def ask(x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        wanted = (lengths or [0]) * (len(x_t) // max(len(lengths), 1))
        groups: dict[tuple[int, int], list[int]] = {}
        for i, length in enumerate(wanted):
            groups.setdefault((length, i if exact else 0), []).append(i)
        if len(groups) < 2:
            return denoise(x_t, t, cond)
        parts = [
            denoise(x_t[rows], t[rows], cond.take(rows).with_context_length(length))
            for (length, _), rows in groups.items()
        ]
        order = torch.tensor(sum(groups.values(), []), device=x_t.device).argsort()
        return Prediction(*(torch.cat(values)[order] for values in zip(*parts, strict=True)))

    return ask


def batches(prompts: list[str], batch_size: int, n_iter: int) -> Iterator[tuple[int, list[str]]]:
    """Yield (iteration, prompts of a batch): the whole list n_iter times, the last batch maybe short."""
    for iteration in range(n_iter):
        for first in range(0, len(prompts), batch_size):
            yield iteration, prompts[first : first + batch_size]
