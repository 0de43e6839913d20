"""Batches: the prompts that are sampled together, and the images that come of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ldm.imaging.colour import to_uint8
from ldm.imaging.paste import Paste
from ldm.tasks.tiles import WHOLE, Tiling


@dataclass(frozen=True)
class Batch:
    """Images made together, and where they stand in the run."""

    prompts: list[str]
    images: Tensor  # (b, 3, height, width) float32 on the CPU, about -1..1, not clamped
    latents: Tensor  # (b, c, h, w) scaled, of the padded size, on the model's device
    iteration: int  # which repetition of the whole prompt list
    index: int  # batches of the run before this one
    seeds: tuple[int, ...] = ()  # each makes its image again alone; empty where none can
    computed_in: dict[str, str] = field(default_factory=dict)  # see ldm.networks.Networks.record
    offset: int = 0  # place of the first of these in the batch that they were made in
    paste: Paste | None = None  # the original image, whose pixels come back where nothing was repainted
    tiling: Tiling = WHOLE  # what the networks saw at once
    maps: list[np.ndarray] = field(default_factory=list)  # (h, w, 3) uint8, what controls followed
    extras: dict[str, np.ndarray] = field(default_factory=dict)  # "depth": the map that was used (h, w)

    def to_uint8(self) -> list[np.ndarray]:
        """Return each image as 8 bits (height, width, 3), or 4 channels where the original has as many."""
        images = to_uint8(self.images)
        return list(images) if self.paste is None else [self.paste.onto(image) for image in images]


class PromptBatch(NamedTuple):
    """The prompts of one batch, and where it stands in the run."""

    index: int  # batches before this one
    iteration: int  # which repetition of the whole prompt list
    first: int  # images before this batch
    prompts: list[str]


def prompt_batches(prompts: Sequence[str], batch_size: int, n_iter: int) -> Iterator[PromptBatch]:
    """Yield the batches of a run: the whole list n_iter times, the last batch of each maybe short."""
    index = first = 0
    for iteration in range(n_iter):
        for start in range(0, len(prompts), batch_size):
            part = list(prompts[start : start + batch_size])
            yield PromptBatch(index, iteration, first, part)
            index, first = index + 1, first + len(part)
