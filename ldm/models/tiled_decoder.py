"""The decoder of an autoencoder on tiles, exactly: the whole image's result in a tile's memory.

A convolution needs a margin around a tile, no more. A GroupNorm needs the mean and variance of the whole
image: tiles that use their own shift in colour against each other. So a stage, a run of layers without
attention, goes over all tiles once for each of its norms, to find that norm's statistics, and once more for
the result:

    pass k = 0 .. n-1    each tile up to norm k, with the statistics of the norms before it: those of norm k
    pass n               each tile to the end

which computes the layers some n/2 times more often, and gives what the whole image would, up to rounding.
Stages are cut before every doubling of the resolution and around attention, so that only what lies between
them is whole:

    [post_quant_conv, conv_in, block] [attention] [block, blocks] [doubling, blocks] ... [.., to the image]

that is 3 + 1 + 9 + 7 + 8 passes over the stages of the reference upscaler's decoder (three residual blocks of
two norms at each of three levels). Attention takes its queries in bands, keys and values of the whole.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.attention import attend
from ldm.models.autoencoder import AttnBlock, AutoencoderKL, ResnetBlock
from ldm.models.unet import Upsample


@torch.no_grad()
def decode_tiled(autoencoder: AutoencoderKL, z: Tensor, tile: int) -> Tensor:
    """Decode unscaled latents (b, c, h, w) as `autoencoder.decode` does, on tiles of tile x tile latents."""
    for stage in stages(autoencoder):
        z = run_stage(stage, z, tile)
        tile *= enlargement(stage)
    return z


def stages(autoencoder: AutoencoderKL) -> list[nn.Sequential]:
    """Return the layers of the decoder, cut before every doubling and around every attention."""
    found: list[list[nn.Module]] = [[autoencoder.post_quant_conv]]
    for layer in autoencoder.decoder.layers():
        alone = isinstance(layer, AttnBlock) or isinstance(found[-1][-1], AttnBlock)
        if alone or isinstance(layer, Upsample):
            found.append([])
        if not isinstance(layer, nn.Identity):
            found[-1].append(layer)
    return [nn.Sequential(*layers) for layers in found]


def enlargement(stage: nn.Sequential) -> int:
    """Return how many times larger what comes out is."""
    return 2 if isinstance(stage[0], Upsample) else 1


def margin(stage: nn.Sequential) -> int:
    """Return how far beyond a tile, in pixels of what goes in, the layers look."""
    pixels = 0
    for layer in reversed(stage):
        if isinstance(layer, Upsample):
            pixels = -(-(pixels + 1) // 2)
        elif isinstance(layer, ResnetBlock):
            pixels += 2
        elif isinstance(layer, nn.Conv2d):
            pixels += layer.kernel_size[0] // 2
    return pixels


class Tile(NamedTuple):
    """One tile of an image: what is computed, and the part of it that counts."""

    rows: slice
    columns: slice
    core_rows: slice
    core_columns: slice

    def cut(self, x: Tensor) -> Tensor:
        return x[..., self.rows, self.columns]

    def core(self, y: Tensor, scale: int) -> Tensor:
        """Return of y, computed from `cut` and `scale` times as large, the part that counts."""
        top = (self.core_rows.start - self.rows.start) * scale
        left = (self.core_columns.start - self.columns.start) * scale
        height, width = (scale * (part.stop - part.start) for part in (self.core_rows, self.core_columns))
        return y[..., top : top + height, left : left + width]

    def put(self, out: Tensor, core: Tensor, scale: int) -> None:
        rows, columns = (slice(s.start * scale, s.stop * scale) for s in (self.core_rows, self.core_columns))
        out[..., rows, columns] = core


def tiles_of(height: int, width: int, tile: int, margin: int) -> list[Tile]:
    """Return tiles whose cores cover height x width once, of nearly one size."""

    def cuts(side: int) -> list[tuple[slice, slice]]:
        count = math.ceil(side / tile)
        edges = [side * i // count for i in range(count + 1)]
        cores = [slice(a, b) for a, b in pairwise(edges)]
        return [(slice(max(0, s.start - margin), min(side, s.stop + margin)), s) for s in cores]

    return [
        Tile(rows, columns, core_rows, core_columns)
        for rows, core_rows in cuts(height)
        for columns, core_columns in cuts(width)
    ]


def run_stage(stage: nn.Sequential, x: Tensor, tile: int) -> Tensor:
    """Apply a stage to x (b, c, h, w), tile by tile; may overwrite x."""
    height, width = x.shape[-2:]
    if max(height, width) <= tile:
        return stage(x)
    if isinstance(stage[0], AttnBlock):
        return attend_in_bands(stage[0], x, max(1, tile * tile // width))
    scale, out = enlargement(stage), None
    parts = tiles_of(height, width, tile, margin(stage))
    with SharedNorms(stage) as norms:
        while True:
            for part in parts:
                y = norms.run(stage, part, x)
                if y is not None:
                    y = part.core(y, scale)
                    if out is None:
                        out = y.new_empty(*y.shape[:2], height * scale, width * scale)
                    part.put(out, y, scale)
            if out is not None:
                return out
            norms.settle()


class Moments:
    """Mean and variance (b, groups) of values that come in parts, each part's own combined in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor, groups: int) -> None:
        """Take x (b, c, h, w) in."""
        values = x.unflatten(1, (groups, -1)).flatten(2).float()  # (b, groups, n)
        variance, mean = (m.cpu().double() for m in torch.var_mean(values, dim=2, correction=0))
        total = self.count + values.shape[2]
        shift = mean - self.mean
        self.squares = (
            self.squares + variance * values.shape[2] + shift**2 * self.count * values.shape[2] / total
        )
        self.mean = self.mean + shift * values.shape[2] / total
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.squares / self.count


class SharedNorms:
    """Makes the GroupNorms of a stage use the statistics of the whole image, which it finds one by one."""

    def __init__(self, stage: nn.Sequential) -> None:
        self.norms = [module for module in stage.modules() if isinstance(module, nn.GroupNorm)]
        self.known: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}
        self.next: nn.GroupNorm | None = None  # whose statistics this pass finds
        self._moments = Moments()

    def __enter__(self) -> "SharedNorms":
        for norm in self.norms:
            norm.forward = lambda x, norm=norm: self._forward(norm, x)
        return self

    def __exit__(self, *_) -> None:
        for norm in self.norms:
            del norm.forward

    def run(self, stage: nn.Sequential, tile: Tile, x: Tensor) -> Tensor | None:
        """Return what the stage makes of a tile; None where that needs statistics not yet known."""
        x = tile.cut(x)
        try:
            return stage(x)
        except _Reached as reached:
            self.next = reached.norm
            scale = reached.x.shape[-1] // x.shape[-1]
            self._moments.add(tile.core(reached.x, scale), reached.norm.num_groups)
            return None

    def settle(self) -> None:
        """Keep what a pass over all tiles has found."""
        self.known[self.next] = self._moments.result()
        self._moments = Moments()

    def _forward(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        if norm not in self.known:
            raise _Reached(norm, x)
        return normalised(norm, x, *self.known[norm])


class _Reached(Exception):
    """A norm whose statistics are not known yet, and its input."""

    def __init__(self, norm: nn.GroupNorm, x: Tensor) -> None:
        super().__init__()
        self.norm, self.x = norm, x


def normalised(norm: nn.GroupNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Apply a GroupNorm to x (b, c, h, w) with given statistics (b, groups).

    That is a batch normalisation in evaluation, each channel of each sample with its group's statistics.
    """
    each = norm.num_channels // norm.num_groups
    mean, variance = (s.float().repeat_interleave(each).to(x.device) for s in (mean, variance))
    scale, shift = (w.float().repeat(len(x)) for w in (norm.weight, norm.bias))
    return F.batch_norm(x.flatten(0, 1)[None], mean, variance, scale, shift, eps=norm.eps).view(x.shape)


def attend_in_bands(attention: AttnBlock, x: Tensor, rows: int) -> Tensor:
    """Add attention over all pixels to x (b, c, h, w), in place, the queries of so many rows at a time."""
    height, width = x.shape[-2:]
    bands = [slice(a, min(a + rows, height)) for a in range(0, height, rows)]
    moments = Moments()
    for band in bands:
        moments.add(x[:, :, band], attention.norm.num_groups)
    statistics = moments.result()

    def tokens(project: nn.Module, band: slice) -> Tensor:
        y = project(normalised(attention.norm, x[:, :, band], *statistics))
        return y.flatten(2).transpose(1, 2).contiguous()[:, None]                               # (b, 1, n, c)

    def whole(project: nn.Module) -> Tensor:
        out = None
        for band in bands:
            part = tokens(project, band)
            if out is None:
                out = part.new_empty(len(x), 1, height * width, part.shape[-1])
            out[:, :, band.start * width : band.stop * width] = part
        return out

    k, v = whole(attention.k), whole(attention.v)
    for band in bands:
        out = attend(tokens(attention.q, band), k, v)
        out = out.squeeze(1).transpose(1, 2).unflatten(2, (-1, width))                      # (b, c, rows, w)
        x[:, :, band] += attention.proj_out(out)
    return x
