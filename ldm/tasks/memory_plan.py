"""What the networks see at once, so that a run stays within so much memory; planned before it.

The first of these that fits is taken:

    UNet       the whole, all samples together    one sample at a time    tiles, as large as may be
    decoder    the whole, all images together   one at a time           tiles, which give exactly the same

A small probe measures what each network takes for a latent pixel (ldm.backends.memory), with A = h w:

    UNet               u * samples * A          with its ControlNets; guidance has two samples an image
    UNet, tile n       u * n^2
    decoder            d * images * A
    decoder, tile n    max over stages of  (in + out) A + work * (n + 2 margin)^2
    both               o * images * A       x_t, conditioning, the sampler's memory, what is saved
"""

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.backends.memory import free_bytes, peak_bytes, used_bytes
from ldm.diffusion.cond import Control
from ldm.errors import InputError, OutOfMemory
from ldm.models.autoencoder import AttnBlock
from ldm.models.controlnet import HINT_FACTOR
from ldm.models.tiled_decoder import enlargement, margin, stages
from ldm.networks import Networks
from ldm.requests import Request
from ldm.tasks.probe import further_inputs
from ldm.tasks.tiles import MIN_TILES, WHOLE, Tiling, tiling_of

logger = logging.getLogger(__name__)

PLANNED_FROM = 128 * 128  # latents of a batch: those of an image of 1024 x 1024 pixels in SD
PROBE = 4  # side of the UNet's probe, in units of its downsampling factor
DECODER_PROBE = 16  # side of the decoder's, in latents
FREE = 0.9  # of what is free, how much a plan counts on
SMALLEST_DECODER_TILE = 8
HEADROOM = {"cpu": 100_000_000}  # what libraries take at the first large run, and keep
LATENT_COPIES = 12  # x_t, its noise, predictions, the sampler's memory, all in float32
HINT_COPIES = 2  # of each ControlNet: for both halves of guidance
IMAGE_COPIES = 6  # decoded, cropped, scaled, 8 bits, marked, as a file


@dataclass(frozen=True)
class Stage:
    """What a stage of the decoder takes for a latent pixel, in bytes."""

    whole: float  # what goes in and what comes out
    work: float  # of the part that is computed at once
    margin: float  # around a tile, in latents


@dataclass(frozen=True)
class Costs:
    """What a run takes, in bytes; each for a latent pixel but `used`, which is taken before."""

    used: int
    unet: float
    decoder: float
    stages: tuple[Stage, ...]
    image: float

    def sampling(self, sides: tuple[int, int], samples: int, tile: int | None = None) -> float:
        height, width = sides if tile is None else (min(side, tile) for side in sides)
        return self.unet * samples * height * width

    def decoding(self, sides: tuple[int, int], images: int, tile: int | None = None) -> float:
        area = sides[0] * sides[1]
        if tile is None or max(sides) <= tile:
            return self.decoder * images * area
        return max(stage.whole * area + stage.work * (tile + 2 * stage.margin) ** 2 for stage in self.stages)


def tiling_for(
    networks: Networks, request: Request, sides: tuple[int, int], unit: int, always: bool = False
) -> Tiling:
    """Return what the networks should see at once of latents of these sides.

    Without --tile and --max-memory what is below PLANNED_FROM is not planned, unless `always`.

    Args:
        unit: pixels a latent, in which the request counts its tiles.

    Raises: InputError, OutOfMemory where even the smallest tiles do not fit.
    """
    batch, multiple = request.n_samples, networks.model.model.diffusion_model.downsampling_factor
    forced = None
    if request.tile is not None:
        forced = tiling_of(request.tile, request.overlap, multiple, unit)
    elif request.max_memory is None and not always and sides[0] * sides[1] * batch <= PLANNED_FROM:
        return WHOLE
    samples = 1 if request.exact else batch * (1 if request.scale == 1 else 2)
    costs, device = measure(networks), networks.device
    return plan(costs, sides, batch, samples, multiple, device, request.max_memory, forced)


@torch.no_grad()
def measure(networks: Networks) -> Costs:
    """Run the networks on something small."""
    model, device = networks.model, networks.device
    side = PROBE * model.model.diffusion_model.downsampling_factor
    x_t, t = torch.zeros(1, model.channels, side, side, device=device), torch.zeros(1, device=device)
    image = torch.zeros(1, 3, side, side, device=device)
    cond = further_inputs(model, image, x_t)
    if networks.text_encoder is not None:
        cond = replace(cond, context=networks.text_of([""]))
    hint = torch.zeros(1, 3, HINT_FACTOR * side, HINT_FACTOR * side, device=device)
    cond = replace(cond, controls=tuple(Control(network, hint) for network in networks.controls))
    unet = peak_bytes(lambda: networks.unet(x_t, t, cond), device) / side**2

    autoencoder, area = model.first_stage_model, DECODER_PROBE**2
    z = torch.zeros(1, model.channels, DECODER_PROBE, DECODER_PROBE, device=device)
    with networks.computing("autoencoder"):
        decoder = peak_bytes(lambda: autoencoder.decode(z), device) / area
        found, scale = [], 1
        for stage in stages(autoencoder):
            out: list[Tensor] = []
            work = peak_bytes(lambda stage=stage, z=z, out=out: out.append(stage(z)), device) / area
            sizes = [x.numel() * x.element_size() / area for x in (z, out[0])]
            if isinstance(stage[0], AttnBlock):
                sizes *= 2  # its keys and values too; what comes out takes the place of what went in
                sizes.pop()
            found.append(Stage(sum(sizes), work, margin(stage) / scale))
            z, scale = out[0], scale * enlargement(stage)
    pixels = 3 * 4 * scale**2
    hints = HINT_COPIES * len(networks.controls) * 3 * 4 * HINT_FACTOR**2
    image = 4 * model.channels * LATENT_COPIES + pixels * IMAGE_COPIES + hints
    used = used_bytes(device) + HEADROOM.get(device.type, 0)
    return Costs(used, unet, decoder, tuple(found), image)


def fitting(
    costs: Costs,
    sides: tuple[int, int],
    images: int,
    samples: int,
    multiple: int,
    budget: float,
    forced: Tiling | None = None,
) -> tuple[Tiling, float] | None:
    """Return the first tiling that fits into `budget` bytes, and what it takes; None where none does.

    Args:
        sides: of the latents.
        images: of a batch.
        samples: that the UNet sees together, two an image under guidance.
        multiple: what the sides of a UNet's tile must be multiples of.
        forced: the tiling of the UNet that was asked for.
    """
    base = costs.used + costs.image * images * sides[0] * sides[1]

    def fits(bytes_: float) -> bool:
        return base + bytes_ <= budget

    if forced is not None:
        tiling, sampling = forced, costs.sampling(sides, 1, forced.tile)
    elif fits(sampling := costs.sampling(sides, samples)):
        tiling = Tiling()
    elif fits(sampling := costs.sampling(sides, 1)):
        tiling = Tiling(one_by_one=True)
    else:
        largest = max(sides) // multiple * multiple
        tiles = range(largest, (MIN_TILES - 1) * multiple, -multiple)
        tile = next((n for n in tiles if fits(costs.sampling(sides, 1, n))), None)
        if tile is None:
            return None
        tiling, sampling = tiling_of(tile, None, multiple), costs.sampling(sides, 1, tile)
    tiling = replace(tiling, decoder_tile=None)
    if fits(decoding := costs.decoding(sides, images)) and not tiling.one_by_one:
        pass
    elif fits(decoding := costs.decoding(sides, 1)):
        tiling = replace(tiling, one_by_one=True)
    else:
        tile = max(sides)
        while not fits(decoding := costs.decoding(sides, 1, tile)):
            tile //= 2
            if tile < SMALLEST_DECODER_TILE:
                return None
        tiling = replace(tiling, one_by_one=True, decoder_tile=tile)
    need = base + max(sampling, decoding)
    return (tiling, need) if need <= budget else None


def plan(
    costs: Costs,
    sides: tuple[int, int],
    images: int,
    samples: int,
    multiple: int,
    device: torch.device,
    max_memory: int | None = None,
    forced: Tiling | None = None,
) -> Tiling:
    """Return what `fitting` finds for `max_memory` bytes, or for what is free, and log it in one line.

    Raises:
        InputError: not even the smallest tiles fit into `max_memory`.
        OutOfMemory: nor into what is free.
    """
    free = free_bytes(device)
    budget = max_memory or (float("inf") if free is None else costs.used + FREE * free)
    shape = sides, images, samples, multiple
    found = fitting(costs, *shape, budget, forced)
    if found is None:
        least = _least(costs, *shape, forced)
        advice = "make the image smaller, or use --dtype bfloat16"
        if max_memory:
            raise InputError(
                f"--max-memory {_gb(max_memory)}: the smallest tiles need about {_gb(least)}; "
                f"allow that much, {advice}"
            )
        raise OutOfMemory(f"the smallest tiles need about {_gb(least)}, and {_gb(budget)} are free; {advice}")
    tiling, need = found
    limit = "" if budget == float("inf") else f" of {_gb(budget)} {'allowed' if max_memory else 'free'}"
    logger.info("memory: %s: needs about %s%s", described(tiling), _gb(need), limit)
    return tiling


def described(tiling: Tiling) -> str:
    """Describe what the networks see at once."""
    unet = "whole" if tiling.tile is None else f"tiles of {tiling.tile}, overlapping by {tiling.overlap}"
    decoder = "" if tiling.decoder_tile is None else f", decoded in tiles of {tiling.decoder_tile}"
    return unet + (", one sample at a time" if tiling.one_by_one else "") + decoder


def _least(costs: Costs, sides, images: int, samples: int, multiple: int, forced: Tiling | None) -> float:
    tile = MIN_TILES * multiple if forced is None else forced.tile
    network = max(
        costs.sampling(sides, 1, tile), costs.decoding(sides, 1, min(max(sides), SMALLEST_DECODER_TILE))
    )
    return costs.used + costs.image * images * sides[0] * sides[1] + network


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
