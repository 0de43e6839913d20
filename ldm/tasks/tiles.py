"""A network on overlapping tiles at every step, where the whole does not fit (arXiv 2302.08113, eq. 5).

    F(x_t, t, cond) = sum_i w_i F(x_t | tile i, t, cond | tile i),      sum_i w_i = 1 everywhere

The network's output for each tile is blended, not the samples: all tiles see the same x_t, which stays
whole, so they agree where they overlap, whatever the sampler. The weights rise from 0 to 1 across an overlap
as sin^2: nothing jumps where a tile ends, and what is off at its border, where the network saw zeros, hardly
counts. eps, v and x_0 are affine in each other at fixed x_t and t, so it is the same in whichever the network
predicts.

Tiles begin at multiples of the network's downsampling factor, where the whole has its own grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.diffusion.cond import Cond
from ldm.errors import InputError

ApplyModel = Callable[[Tensor, Tensor, Cond], Tensor]

MIN_TILES = 4
"""The smallest tile, in units of the network's downsampling factor; that of its lowest level."""


@dataclass(frozen=True)
class Tiling:
    """What the networks see of the latents at once.

    Args:
        tile: side of what the UNet sees, in latents; None is the whole.
        overlap: how far two tiles overlap at least, below `tile`.
        one_by_one: one sample at a time, each half of guidance by itself.
        decoder_tile: side of the decoder's tiles in latents (ldm.models.tiled_decoder); None is the whole.
    """

    tile: int | None = None
    overlap: int = 0
    one_by_one: bool = False
    decoder_tile: int | None = None


WHOLE = Tiling()


def tiling_of(tile: int, overlap: int | None, multiple: int, unit: int = 1) -> Tiling:
    """Return a tiling with tiles of at least `tile` pixels, as near as a network of that multiple can take.

    Args:
        overlap: in pixels; a quarter of the tile where None.
        multiple: of latents.
        unit: pixels a latent.

    Raises: InputError for a tile too small for the network, or an overlap that is none.
    """
    smallest = MIN_TILES * multiple * unit
    if tile < smallest:
        raise InputError(f"--tile {tile}: expected {smallest} or more for this network")
    side = math.ceil(tile / (multiple * unit)) * multiple
    overlap = side * unit // 4 if overlap is None else overlap
    if not 0 <= overlap <= side * unit // 2:
        raise InputError(f"--overlap {overlap}: expected 0 to {side * unit // 2}, half of the tile")
    shared = math.ceil(overlap / (multiple * unit)) * multiple
    return Tiling(side, shared, one_by_one=True, decoder_tile=side)


def tiled(apply_model: ApplyModel, tiling: Tiling, multiple: int) -> ApplyModel:
    """Return a network (x_t (b, c, h, w), t (b,), cond) -> (b, c, h, w) that sees so much at once."""

    def rows(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if not tiling.one_by_one or len(x_t) == 1:
            return apply_model(x_t, t, cond)
        each = [slice(i, i + 1) for i in range(len(x_t))]
        return torch.cat([apply_model(x_t[i], t[i], cond.take(i)) for i in each])

    def blended(x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        sides = x_t.shape[-2:]
        if tiling.tile is None or max(sides) <= tiling.tile:
            return rows(x_t, t, cond)
        down, across = (spans(side, tiling.tile, tiling.overlap, multiple) for side in sides)
        out = torch.zeros_like(x_t, dtype=torch.float32)
        for i, down_weights in zip(down, weights(down), strict=True):
            for j, across_weights in zip(across, weights(across), strict=True):
                part = rows(x_t[..., i, j], t, cond.cropped(tuple(sides), i, j))
                out[..., i, j] += (down_weights[:, None] * across_weights).to(out) * part
        return out

    return rows if tiling.tile is None else blended


def spans(side: int, tile: int, overlap: int, multiple: int) -> list[slice]:
    """Return tiles that cover `side`, evenly spread, each overlapping the next by at least `overlap`."""
    if side <= tile:
        return [slice(0, side)]
    count = math.ceil((side - overlap) / (tile - overlap))
    starts = [(side - tile) * i // (count - 1) // multiple * multiple for i in range(count)]
    return [slice(start, start + tile) for start in starts]


def weights(tiles: list[slice]) -> list[Tensor]:
    """Return the weights (n,) of tiles along one side; those of all tiles add up to 1 everywhere."""
    found = []
    for i, part in enumerate(tiles):
        position = torch.arange(part.start, part.stop, dtype=torch.float64) + 0.5
        w = torch.ones_like(position)
        if i > 0 and (ramp := tiles[i - 1].stop - part.start):
            w *= _rise((position - part.start) / ramp)
        if i + 1 < len(tiles) and (ramp := part.stop - tiles[i + 1].start):
            w *= _rise((part.stop - position) / ramp)
        found.append(w)
    total = torch.zeros(tiles[-1].stop, dtype=torch.float64)
    for part, w in zip(tiles, found, strict=True):
        total[part] += w
    return [w / total[part] for part, w in zip(tiles, found, strict=True)]


def _rise(x: Tensor) -> Tensor:
    """0 to 1 as x goes from 0 to 1."""
    return torch.sin(0.5 * math.pi * x.clamp(0, 1)) ** 2
