"""The random numbers of a run behind one interface: a task asks for the noise of a batch by its purpose.

    source = make_noise_source(rng, seed, device, batch_size, images, fixed_code=fixed_code)
    noise = source.batch(first, count)             # of `count` images, the first of which is number `first`
    x_t = noise.normal("start", c, h, w)           # (count, c, h, w) float32 on the device
    for step in sample_loop(sampler, denoise, x_t, cond, noise=noise): ...

A new source of random numbers is one subclass of `NoiseSource` and one row in `RNGS`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.philox import cuda_normal, normal, philox
from ldm.errors import InputError
from ldm.requests.readers import MAX_SEED
from ldm.samplers.base import Noise
from ldm.wording import counted

PURPOSES = {
    "start": 1,  # the noise that a batch begins with, or that is added to the image to begin with
    "step": 2,  # a step of the sampler
    "keep": 3,  # the masked part, drawn before each step
    "posterior": 4,  # of the autoencoder
    "conditioning": 5,  # on the image that the model is conditioned on: the upscaler's, unCLIP's
}
"""What is drawn, and the number of each in `per-image`: rows are added, never changed. CUDA's own is 0."""
ONCE = ("posterior", "conditioning")
"""What the reference scripts draw once a run."""


@dataclass(eq=False)
class NoiseSource:
    """The random numbers of one run.

    Args:
        seed: of the run.
        batch_size: rows of a full batch.
        fixed_code: as --fixed_code: see the classes.
        numpy_start: the reference script of this task takes its start noise from NumPy.
    """

    seed: int
    device: torch.device
    batch_size: int
    fixed_code: bool = False
    numpy_start: bool = False

    own_seeds = False
    """image k of a run is that of a run of one with the seed seed + k"""

    def batch(self, first: int, count: int, start: int = 0, stage: int = 0) -> "BatchNoise":
        """Return the random numbers of `count` images, the first of which is number `first` of the run.

        Args:
            start: the step that they are sampled from.
            stage: which sampling of these images this is, 1 for the second pass of two.
        """
        return BatchNoise(self, first, count, start, stage)

    def sample(self, batch: "BatchNoise", key: "Key", shape: Sequence[int]) -> Tensor:
        """Return standard normal numbers (batch.count, *shape) in float32 on the device."""
        raise NotImplementedError

    def seeds(self, first: int, count: int) -> tuple[int, ...]:
        """Return what each image can be made again from alone; empty where it cannot."""
        return ()

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs to continue from here in another process."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue where `state` was taken."""


@dataclass(frozen=True)
class Key:
    """What a draw is for: its purpose, the step that asks, and how often that step asked before."""

    purpose: str
    step: int = 0
    call: int = 0
    channels_last: bool = False  # the reference script draws into (b, h, w, c): see BatchNoise.normal


@dataclass(frozen=True)
class BatchNoise:
    """The random numbers of the images of one batch; a `KeyedNoise` for the sampling loop."""

    source: NoiseSource
    first: int
    count: int
    start: int = 0
    stage: int = 0

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.source.seeds(self.first, self.count)

    def normal(self, purpose: str, *shape: int, call: int = 0, channels_last: bool = False) -> Tensor:
        """Draw (count, *shape) in float32 on the device, for a purpose outside the steps.

        Args:
            call: 1, 2, ... for a second and third draw of one purpose.
            channels_last: `shape` (c, h, w) is an image whose noise the reference script draws in the memory
                order of its file, channels innermost: another order of the same numbers.
        """
        return self.source.sample(self, Key(purpose, call=call, channels_last=channels_last), shape)

    def at(self, i: int, purpose: str) -> Noise:
        """Return the noise of step `i`, which may be called more than once."""
        calls = itertools.count()
        return lambda x: self.source.sample(self, Key(purpose, i, next(calls)), x.shape[1:]).to(x)


@dataclass(eq=False)
class Reference(NoiseSource):
    """The reference scripts' draws in their order, so that a seed gives their image.

    Two generators are seeded alike, one on the model's device and one on the CPU; on the CPU they are the
    same one. Every draw is that of a full batch; a short last batch uses the first rows. Posterior noise
    comes from the CPU's generator. It and the noise on conditioning are drawn once a run, before all else, so
    that a resumed run draws them alike; with `fixed_code` the start noise too is drawn once.
    """

    def __post_init__(self) -> None:
        self._generator = torch.Generator(self.device).manual_seed(self.seed)
        on_cpu = self.device.type == "cpu"
        self._cpu_generator = self._generator if on_cpu else torch.Generator().manual_seed(self.seed)
        self._once: dict[str, Tensor] = {}

    def sample(self, batch: BatchNoise, key: Key, shape: Sequence[int]) -> Tensor:
        full = (self.batch_size, *shape)
        if key.purpose in ONCE or (key.purpose == "start" and self.fixed_code):
            name = f"{key.purpose}.{batch.stage}" + (f".{key.call}" if key.call else "")
            if name not in self._once:
                self._once[name] = self._next(key, full, 0)
            return self._once[name][: batch.count]
        return self._next(key, full, batch.first)[: batch.count]

    def _next(self, key: Key, shape: tuple[int, ...], first: int) -> Tensor:
        if key.purpose == "posterior":
            return torch.randn(shape, generator=self._cpu_generator).to(self.device)
        if key.purpose == "start" and self.numpy_start:
            drawn = np.random.RandomState(self.seed).randn(first + shape[0], *shape[1:])[first:]
            return torch.from_numpy(drawn).float().to(self.device)
        if key.channels_last:  # what it is drawn into decides the order, and on CPUs the numbers themselves
            drawn = torch.empty(shape, device=self.device, memory_format=torch.channels_last)
            return drawn.normal_(generator=self._generator).contiguous()
        return torch.randn(shape, generator=self._generator, device=self.device)

    def state(self) -> dict[str, Tensor]:
        states = {"generator": self._generator.get_state(), "cpu_generator": self._cpu_generator.get_state()}
        return states | {f"once.{purpose}": x for purpose, x in self._once.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._generator.set_state(state["generator"])
        self._cpu_generator.set_state(state["cpu_generator"])
        self._once = {
            name.removeprefix("once."): x.to(self.device)
            for name, x in state.items()
            if name.startswith("once.")
        }


class PerImage(NoiseSource):
    """Every draw is a function of the image's own seed, the step and the purpose, and of nothing else.

    Image k of the run has the seed seed + k; with `fixed_code` all have the run's, so that only the prompts
    tell them apart. The numbers of a draw are those of the blocks 0, 1, 2, ... of Philox4x32-10:

        counter = (block, step, call, purpose)      key = (seed of the image, stage)

    `call` counts the draws of one step, `purpose` is a row of `PURPOSES`, `stage` is 1 in a second pass. They
    are drawn on the CPU whatever the device, and no bit of them may ever change.
    """

    own_seeds = True

    def seeds(self, first: int, count: int) -> tuple[int, ...]:
        return tuple(self.seed + (0 if self.fixed_code else k) for k in range(first, first + count))

    def sample(self, batch: BatchNoise, key: Key, shape: Sequence[int]) -> Tensor:
        size = math.prod(shape)
        drawn = [self.row(seed, key, batch, size).reshape(shape) for seed in batch.seeds]
        return torch.from_numpy(np.stack(drawn)).to(self.device)

    def row(self, seed: int, key: Key, batch: BatchNoise, size: int) -> np.ndarray:
        """Return the draw of one image, (size,) float32."""
        blocks = np.arange(-(-size // 4))
        return normal(philox((blocks, key.step, key.call, PURPOSES[key.purpose]), (seed, batch.stage)))[:size]


class GpuPhilox(PerImage):
    """What a CUDA device draws from a generator of each image's own, seeded with seed + k.

    Draw 0 is the start noise, then one for each step; a second pass begins again at 0. The other purposes, a
    second draw within a step, and stages beyond the second pass are drawn as `per-image` draws them and do
    not move the generator on.
    """

    def row(self, seed: int, key: Key, batch: BatchNoise, size: int) -> np.ndarray:
        if batch.stage > 1:
            return super().row(seed, key, batch, size)
        if key.purpose == "start":
            return cuda_normal(seed, 0, size)
        if key.purpose == "step" and key.call == 0:
            return cuda_normal(seed, 1 + key.step - batch.start, size)
        return super().row(seed, key, batch, size)


RNGS: dict[str, type[NoiseSource]] = {"reference": Reference, "per-image": PerImage, "gpu-philox": GpuPhilox}


def check_seeds(rng: str, seed: int, images: int, fixed_code: bool = False) -> None:
    """Raise InputError where there is no such rng, or the last of the images has no seed."""
    if rng not in RNGS:
        raise InputError(f"unknown rng {rng!r}: expected one of {', '.join(RNGS)}")
    last = seed if fixed_code else seed + images - 1
    if RNGS[rng].own_seeds and not 0 <= seed <= last <= MAX_SEED:
        raise InputError(
            f"the {counted(images, 'image')} of this run would have the seeds {seed} to {last}: "
            f"expected 0 to {MAX_SEED}; choose a smaller seed"
        )


def make_noise_source(
    rng: str, seed: int, device: torch.device, batch_size: int, images: int, **options: bool
) -> NoiseSource:
    """Build a row of `RNGS` by name, for a run of so many images; `options` are as `NoiseSource` has them.

    Raises:
        InputError: there is none of that name, or the seeds of the images go beyond the last one.
    """
    check_seeds(rng, seed, images, options.get("fixed_code", False))
    return RNGS[rng](seed, device, batch_size, **options)
