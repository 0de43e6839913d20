"""A request being carried out on a model: what all tasks share.

for batch in run.each(frame):
    yield batch.done(batch.denoise(batch.begin(), batch.cond()))
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.cond import Cond, Control, within
from ldm.diffusion.guidance import Guidance
from ldm.diffusion.prediction import Denoise, denoiser
from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.imaging.padding import Frame
from ldm.imaging.paste import Paste
from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.networks import Networks, are_finite, networks_of
from ldm.requests import Request
from ldm.requests.resolving import REFERENCE
from ldm.samplers import make_sampler
from ldm.samplers.base import Noise, Sampler
from ldm.samplers.loop import KeyedNoise, Step, sample_loop
from ldm.tasks.batch import Batch, PromptBatch, prompt_batches
from ldm.tasks.inputs import read_inputs
from ldm.tasks.latents import Position, SampleState, StoppedAt, expand_latents, restored
from ldm.tasks.memory_plan import tiling_for
from ldm.tasks.noise import BatchNoise, make_noise_source
from ldm.tasks.steering import Steer, Steering, View
from ldm.tasks.text import Text
from ldm.tasks.tiles import WHOLE, Tiling, tiled
from ldm.wording import counted

logger = logging.getLogger(__name__)

# Wraps the iterator of steps of one batch, of known length: a progress bar, a preview. Where it ends before
# the steps do, sampling stops there (StoppedAt).
Track = Callable[[Iterator[Step], int], Iterable[Step]]


@dataclass(frozen=True)
class Task:
    """How requests of one kind are carried out, and what they ask of a model.

    Args:
        make: yields the batches.
        accepts: the ways into the UNet (conditioning_key) that the task has inputs for.
        check: raises InputError for models that it cannot use for another reason.
        load: returns the request with its files read, or raises InputError; it has no model yet.
        numpy_start: the reference script of this task takes its start noise from NumPy.
        always_planned: memory is planned at every size.
    """

    make: Callable[["Run", Any], Iterator[Batch]]
    accepts: tuple[str | None, ...] = ("crossattn",)
    check: Callable[[LatentDiffusion], Any] = lambda model: None
    load: Callable[[Any], Request] = read_inputs
    numpy_start: bool = False
    always_planned: bool = False


class Halves(NamedTuple):
    """What the UNet is given with x_t and t, and what guidance leads away from; None without guidance."""

    cond: Cond
    uncond: Cond | None = None

    def steered(self, controls: tuple[Control, ...]) -> "Halves":
        """Return both with controls added; the unconditional half gets those that act on both."""
        if not controls:
            return self
        cond = replace(self.cond, controls=self.cond.controls + controls)
        if self.uncond is None:
            return Halves(cond)
        both = tuple(each for each in controls if not each.is_conditional)
        return Halves(cond, replace(self.uncond, controls=self.uncond.controls + both))


class Keep(NamedTuple):
    """What stays of an image while the rest is repainted, for models that do not see the mask."""

    mask: Tensor  # (1 or b, 1, h, w), 1 where x_0 stays
    x_0: Tensor  # (b, c, h, w) scaled latents


class Run:
    """A model, a request, and all that its batches share.

    Args:
        request: loaded and resolved, see `ldm.tasks.generate`.
        dtype: what the networks compute in, see `ldm.networks.networks_of`.
        skip: numbers of batches that are not made.
        steers: the request's controls with their ControlNets.

    Attributes:
        state: where sampling stands, after every step; None before the first batch.
        resume: where an interrupted run stopped; None if this one starts from the beginning.
        tiling: what the networks see of the latents at once, once `plan` was called.

    Raises: InputError for a model of another kind, or options that the sampler or the model cannot honour.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        request: Request,
        task: Task,
        track: Track | None = None,
        resume: Position | None = None,
        dtype: torch.dtype | None = None,
        skip: Collection[int] = (),
        steers: Sequence[Steer] = (),
    ) -> None:
        task.check(model)
        check_key(model, task.accepts)
        self.model = model
        self.request = request
        self.task = task
        self.track = track or (lambda steps, total: steps)
        self.resume = resume
        self.skip = skip
        self.networks: Networks = networks_of(model, dtype)
        self.networks.controls = tuple(steer.network for steer in steers)
        self.steering = Steering(steers, model.downsampling_factor, model.device)
        schedule = model.schedule
        self.schedule = schedule.with_zero_terminal_snr() if request.zero_snr else schedule
        self.sampler = self.sampler_of(request.steps)
        self.guidance = Guidance(
            request.scale, request.guidance_rescale, request.guidance_interval, request.dynamic_threshold
        )
        self.text = Text(self.networks, request)
        images = request.n_iter * len(request.prompts)
        options = {"fixed_code": request.fixed_code, "numpy_start": task.numpy_start}
        self.noise = make_noise_source(
            request.rng, request.seed, model.device, request.n_samples, images, **options
        )
        denoiser(self.networks.unet, self.schedule, model.parameterization)  # eps with zero SNR is refused
        self.tiling: Tiling = WHOLE
        self._tilings = {} if resume is None else dict(resume.tilings)
        self._is_planned = False
        self.state: SampleState | None = None
        self._said: int | None = None
        self._is_skipping = False

    @torch.no_grad()
    def batches(self) -> Iterator[Batch]:
        """Carry the request out."""
        self.networks.begin()
        yield from (batch for batch in self.task.make(self, self.request) if batch.index not in self.skip)

    # What tasks ask for first

    def frame(self, height: int, width: int) -> Frame:
        """Return how an image of this size is padded to one that the model can take."""
        return Frame.around(height, width, self.model.size_multiple)

    def latent_shape(self, frame: Frame) -> tuple[int, int, int]:
        """Return (c, h, w) of the latents of a framed image."""
        factor = self.model.downsampling_factor
        height, width = (frame.scale * side for side in (frame.inner_height, frame.inner_width))
        return self.model.channels, height // factor, width // factor

    def plan(self, frame: Frame) -> None:
        """Choose what the networks see at once of images in a frame, from the request or free memory.

        A run that is resumed keeps what it chose, whatever memory is free by then.

        Raises: InputError, OutOfMemory where even the smallest tiles do not fit.
        """
        sides = self.latent_shape(frame)[1:]
        unit = frame.inner_height // sides[0]
        if sides not in self._tilings:
            always = self.task.always_planned
            self._tilings[sides] = tiling_for(self.networks, self.request, sides, unit, always)
        self.tiling = self._tilings[sides]
        self._is_planned = True

    def sampler_of(self, num_steps: int) -> Sampler:
        """Return the request's sampler with another number of steps."""
        request = self.request
        spacing = None if request.schedule == REFERENCE else request.schedule
        return make_sampler(request.sampler, self.schedule, num_steps, eta=request.eta, spacing=spacing)

    def steps_of(self, strength: float) -> int:
        """Return how many steps, the last ones, a strength from 0 to 1 runs; warn where there are none."""
        steps = int(strength * self.sampler.num_steps)
        if strength > 0 and not steps:
            said = "strength %g of %s leaves none to run: nothing is repainted"
            logger.warning(said, strength, counted(self.sampler.num_steps, "step"))
        return steps

    def encode(self, image: np.ndarray | Tensor, frame: Frame) -> DiagonalGaussianDistribution:
        """Encode an image, (h, w, 3) uint8 or (n, 3, h, w) in -1..1, padded to a frame."""
        return self.encode_framed(frame.pad(image if isinstance(image, Tensor) else from_uint8(image)))

    def encode_framed(self, images: Tensor) -> DiagonalGaussianDistribution:
        """Encode images (n, 3, H, W) in -1..1 of a size that the model can take."""
        found = [self.networks.encode(images[rows]).parameters for rows in self._together(len(images))]
        return DiagonalGaussianDistribution(torch.cat(found))

    def decode(self, latents: Tensor, frame: Frame) -> Tensor:
        """Return images (b, 3, height, width) in float32 on the CPU, all of them finite.

        Raises: BadImageError where they are not in float32 either.
        """
        if self._is_skipping:
            return torch.zeros(len(latents), 3, frame.height, frame.width)
        tile = self.tiling.decoder_tile
        parts = [self.networks.decode(latents[rows], tile) for rows in self._together(len(latents))]
        return frame.crop(torch.cat(parts)).cpu()

    def each(
        self, frame: Frame, steps: int | None = None, view: View | None = None
    ) -> "Iterator[BatchRun]":
        """Yield the batches to make; those done before an interruption are left out.

        The reference's random numbers depend on all batches before. There a batch that is skipped is sampled
        without its networks, to draw what it would draw.

        Args:
            steps: begin so many steps before the end, from an image; None is all, from noise.
            view: the part of the result that the frame holds; None is all of it.
        """
        if not self._is_planned:
            self.plan(frame)
        request = self.request
        parts = list(prompt_batches(request.prompts, request.n_samples, request.n_iter))
        last = max((part.index for part in parts if part.index not in self.skip), default=-1)
        for part in parts[: last + 1]:
            self._is_skipping = part.index in self.skip
            is_needed = not (self._is_skipping and self.noise.own_seeds)
            if is_needed and (self.resume is None or part.first >= self.resume.first):
                yield BatchRun.of(self, part, frame, self.sampler, steps, view=view)

    # Sampling

    def sample(
        self,
        sampler: Sampler,
        x_t: Tensor,
        halves: Halves,
        noise: Noise | KeyedNoise,
        start: int = 0,
        keep: Keep | None = None,
    ) -> Tensor:
        """Denoise x_t (b, c, h, w), which stands before step `start`; returns latents (b, c, h, w).

        In the batch that `resume` is of, that position takes the place of x_t and start.

        Args:
            keep: before every step this part is put back, at that step's noise.

        Raises: StoppedAt, where `track` ended before the steps.
        """
        self.state = SampleState(start, x_t, upcast=self.networks.has_upcast("UNet"))
        if self.resume is not None and self.resume.is_of(noise):
            self.state = restored(self.resume, noise, x_t, len(sampler))
            if self.state.upcast:
                self.networks.resume_upcast()
        start = self.state.step
        if not self._is_skipping:
            self._say_cost(sampler)
        steps = self._steps(sampler, self._denoise(halves.uncond), halves.cond, KeptNoise(noise), keep)
        for _ in steps if self._is_skipping else self.track(steps, len(sampler) - start):
            pass
        if self.state.step < len(sampler) and isinstance(noise, BatchNoise):
            prompts, source = list(self.request.prompts), noise.source.state()
            where = prompts, noise.first, noise.stage, self.state, source
            raise StoppedAt(Position(*where, tilings=self._tilings))
        return self.state.x_t

    def _denoise(self, uncond: Cond | None) -> Denoise:
        parameterization = self.model.parameterization
        multiple = self.model.model.diffusion_model.downsampling_factor
        network = tiled(self.networks.unet, self.tiling, multiple)
        if self._is_skipping:
            return denoiser(lambda x_t, t, cond: torch.zeros_like(x_t), self.schedule, parameterization)
        plain = self.text.separately(denoiser(network, self.schedule, parameterization))
        return self.guidance.around(plain, uncond, self.schedule, parameterization)

    def _steps(
        self, sampler: Sampler, denoise: Denoise, cond: Cond, noise: KeyedNoise, keep: Keep | None
    ) -> Iterator[Step]:
        """Yield the steps from `state`, each kept there before it is seen; a bad one is repeated."""
        kept = {} if keep is None else {"keep_mask": keep.mask, "keep_x_0": keep.x_0}
        while (start := self.state.step) < len(sampler):
            loop = sample_loop(
                sampler, denoise, self.state.x_t, cond,
                noise=noise, start=start, memory=self.state.memory, **kept,
            )  # fmt: skip
            for step in loop:
                if not are_finite(step.x_t, step.x_0):
                    where = f"step {step.i + 1} of {len(sampler)}"
                    again = f"continuing in float32 from step {step.i + 1}"
                    self.networks.upcast("UNet", where, step.x_t, step.x_0, again=again)
                    break
                memory, upcast = tuple(sampler.memory), self.networks.has_upcast("UNet")
                self.state = SampleState(step.i + 1, step.x_t, memory, upcast)
                yield step

    def _together(self, count: int) -> list[slice]:
        """Return which of `count` samples the networks see together."""
        return [slice(i, i + 1) for i in range(count)] if self.one_by_one else [slice(count)]

    @property
    def one_by_one(self) -> bool:
        return self.request.exact or self.tiling.one_by_one

    def _say_cost(self, sampler: Sampler) -> None:
        """Log what the batch costs from `state` on, once for each cost."""
        start = self.state.step
        cost = sampler.evaluations(start, self.state.memory)
        if cost == self._said:
            return
        self._said = cost
        name, asked = self.request.sampler, sampler.num_steps
        odd = not start and cost != asked and self.request.schedule == REFERENCE
        why = f" (the reference's times; --sampler {name} runs exactly {asked} for {counted(asked, 'step')})"
        logger.info("%s: %s a batch%s", name, counted(cost, "UNet evaluation"), why if odd else "")
        if self.guidance.interval is not None and self.guidance.scale != 1:
            times = torch.tensor(sampler.timesteps[start:], device="cpu")
            count = int(within(self.guidance.interval, times, self.schedule.num_timesteps).sum())
            level = logging.INFO if count else logging.WARNING
            logger.log(level, "guidance in %d of %s", count, counted(len(times), "step"))


@dataclass(frozen=True)
class BatchRun:
    """One batch of a run while it is made.

    Args:
        part: its prompts.
        steps: how many steps before the end it begins, from an image; None is all, from noise.
        view: the part of the result that the frame holds.
    """

    run: Run
    part: PromptBatch
    frame: Frame
    sampler: Sampler
    steps: int | None
    noise: BatchNoise
    view: View

    @classmethod
    def of(
        cls,
        run: Run,
        part: PromptBatch,
        frame: Frame,
        sampler: Sampler,
        steps: int | None,
        stage: int = 0,
        view: View | None = None,
    ) -> "BatchRun":
        start = 0 if steps is None else sampler.start_index(steps)
        noise = run.noise.batch(part.first, len(part.prompts), start, stage)
        view = view or View(frame.height, frame.width)
        return cls(run, part, frame, sampler, steps, noise, view)

    def again(
        self,
        frame: Frame,
        stage: int,
        steps: int | None = None,
        sampler: Sampler | None = None,
        view: View | None = None,
    ) -> "BatchRun":
        """Return a further stage of this batch, with noise of its own."""
        return self.of(self.run, self.part, frame, sampler or self.sampler, steps, stage, view)

    @property
    def prompts(self) -> list[str]:
        return self.part.prompts

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents."""
        return self.run.latent_shape(self.frame)

    def is_resumed(self) -> bool:
        """Tell whether the run was interrupted in this stage of this batch."""
        return self.run.resume is not None and self.run.resume.is_of(self.noise)

    def sample_posterior(
        self, posterior: DiagonalGaussianDistribution | Tensor | None, call: int = 0
    ) -> Tensor | None:
        """Return scaled latents (b, c, h, w) of an encoded image; given ones, or None, as they are.

        The noise is drawn in any case, so that what follows is the seed's.

        Args:
            call: 1, 2, ... for a second and third posterior.
        """
        noise = self.noise.normal("posterior", *self.shape, call=call)
        if posterior is None:
            return None
        if isinstance(posterior, Tensor):
            return self._expanded(posterior)
        return self.run.model.get_first_stage_encoding(posterior, noise).float()

    def begin(self, x_0: Tensor | None = None) -> Tensor:
        """Return x_t to start from: x_0 with the first step's noise on it, given noise, or drawn noise.

        The noise is drawn in any case, so that what follows is the seed's.
        """
        eps = self.noise.normal("start", *self.shape)
        if x_0 is not None and self.steps is not None:
            return self.sampler.noised(x_0, self.steps, eps)
        given = getattr(self.run.request, "latents", None)
        return eps if given is None or x_0 is not None else self._expanded(given.values)

    def cond(self, make: Callable[[Tensor], Cond] = Cond) -> Halves:
        """Return the conditioning by the prompts, and its unconditional half.

        Args:
            make: context -> Cond, for models that are given more than text.
        """
        context, empty = self.run.text.contexts(self.prompts, self.run.one_by_one)
        cond = make(context)
        return Halves(cond, None if empty is None else self.run.model.unconditional(cond, empty))

    def denoise(self, x_t: Tensor, halves: Halves, keep: Keep | None = None) -> Tensor:
        """Sample from x_t, which `begin` returned, under the run's controls; returns latents (b, c, h, w)."""
        seen = self.frame, self.view
        controls = self.run.steering.controls(len(x_t), *seen, self.sampler, self.noise.start)
        halves = halves.steered(controls)
        return self.run.sample(self.sampler, x_t, halves, self.noise, self.noise.start, keep)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (b, 3, height, width) of latents, on the CPU."""
        return self.run.decode(latents, self.frame)

    def done(self, latents: Tensor, images: Tensor | None = None, paste: Paste | None = None) -> Batch:
        """Return what has become of the batch; the images are the decoded latents unless they are given."""
        images = self.decode(latents) if images is None else images
        part, computed_in = self.part, self.run.networks.record()
        return Batch(
            part.prompts, images, latents, part.iteration, part.index, self.noise.seeds, computed_in,
            paste=paste, tiling=self.run.tiling, maps=self.run.steering.maps(),
        )  # fmt: skip

    def _expanded(self, latents: Tensor) -> Tensor:
        size = self.run.request.n_samples
        return expand_latents(latents, self.noise.count, self.shape, size, self.run.model.device)


class KeptNoise:
    """A source of noise that gives a step the same numbers again when the step is repeated."""

    def __init__(self, source: Noise | KeyedNoise) -> None:
        self.source = source
        self._step: int | None = None
        self._kept: dict[str, list[Tensor]] = {}  # purpose -> what was drawn in this step

    def at(self, i: int, purpose: str) -> Noise:
        if i != self._step:
            self._step, self._kept = i, {}
        kept = self._kept.setdefault(purpose, [])
        again = iter(list(kept))
        source = self.source.at(i, purpose) if hasattr(self.source, "at") else self.source

        def sample(x: Tensor) -> Tensor:
            eps = next(again, None)
            if eps is None:
                eps = source(x)
                kept.append(eps)
            return eps

        return sample


def check_key(model: LatentDiffusion, accepts: tuple[str | None, ...]) -> None:
    """Raise InputError where a model's conditioning_key is none that a task has inputs for."""
    key = model.model.conditioning_key
    if key in accepts:
        return
    more = " needs more than a prompt" if accepts == ("crossattn",) else " is for another task"
    more = " takes no prompt" if key is None else more
    raise InputError(
        f"this model{more} (conditioning_key {key!r}); expected {' or '.join(map(str, accepts))}"
        + (", a text-to-image model" if accepts == ("crossattn",) else "")
    )
