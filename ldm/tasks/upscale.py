"""Pictures four times larger: the latents have the small picture's sides, and the decoder enlarges.

    c_concat = the small picture at noise level l,   y = l        (arXiv 2106.15282; latent_upscale.py)

More noise lets the model invent more: 20 as published, up to the model's `max_noise_level`. Draws, in order:
the small picture's noise, once a run, then the start noise, from NumPy as published, and the sampler's, one
a step.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.cond import Cond
from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.imaging.faithful import made_faithful
from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.latent_upscale import LatentUpscaleDiffusion, LatentUpscaleFinetuneDiffusion
from ldm.tasks.draws import Draws, make_draws
from ldm.tasks.latents import Position, rows
from ldm.tasks.memory_plan import measure, plan
from ldm.tasks.sampling import Batch, Diffuser, Settings, Track
from ldm.tasks.tiles import Tiling, tiling_of

NOISE_LEVEL = 20  # of the published page

logger = logging.getLogger(__name__)


def upscale(
    model: LatentDiffusion,
    image: np.ndarray,
    prompts: list[str],
    *,
    seed: int,
    noise_level: int | None = None,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    tiling: Tiling | None = None,
    faithful: bool | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
    latents: Tensor | None = None,
    resume: Position | None = None,
) -> Iterator[Batch]:
    """Make pictures of `image` (h, w, 3) uint8 that are exactly 4 times as large: (4 h, 4 w).

    Any size: a picture that the model cannot take is padded by mirroring, and the result is cropped.

    Args:
        noise_level: how much of the small picture is noise, 0 to the model's max_noise_level; None is
            NOISE_LEVEL for models that add noise.
        tiling: what the networks see at once; None is what `plan_upscale` finds for the memory that is free.
        faithful: make the result agree with `image`: shrunk, it is that again, colours and all. None does so
            where tiles are used, which see less and may drift in colour.
        latents: (1 or batch_size, c, h, w), the start noise of every batch in place of the one that is drawn.
        resume: go on from here, exactly, to the end of the run.

    Raises: InputError for a model or a noise level of another kind, or settings that cannot be honoured.
    """
    settings = settings or Settings()
    noise_level = checked_level(model, noise_level)
    if tiling is None:
        tiling = plan_upscale(model, image.shape[:2], batch_size, settings)
    if faithful is None and (faithful := tiling.tile is not None):
        logger.info("tiles: the result is made to agree with the small picture's colours")
    keys = ("hybrid-adm", "hybrid")
    diffuser = Diffuser(model, settings, batch_size, track, resume, accepts=keys, tiling=tiling)
    frame = small_frame(model, *image.shape[:2])
    pictures = n_iter * len(prompts)
    draws = make_draws(
        settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code, numpy_start=True
    )
    if latents is not None:
        latents = rows(latents, batch_size, diffuser.latent_shape(frame), batch_size, model.device)
    batches = _generate(diffuser, frame, image, noise_level, draws, prompts, n_iter, latents)
    return agreeing(batches, image) if faithful else batches


def agreeing(batches: Iterator[Batch], image: np.ndarray) -> Iterator[Batch]:
    """Yield the batches with pictures that agree with the small one, (h, w, 3) uint8."""
    small = from_uint8(image)
    for batch in batches:
        yield replace(batch, images=made_faithful(batch.images, small))


def checked_level(model: LatentDiffusion, noise_level: int | None) -> int | None:
    """Return the noise level for a model; None for one that adds no noise.

    Raises: InputError where the model is no upscaler, or does not know that level.
    """
    kinds = (LatentUpscaleDiffusion, LatentUpscaleFinetuneDiffusion)
    if not isinstance(model, kinds):
        raise InputError(f"this model is a {type(model).__name__}; expected {kinds[0].__name__}, an upscaler")
    if getattr(model, "reshuffle_patch_size", None) is not None:
        raise InputError(
            f"this upscaler cuts the picture into {model.reshuffle_patch_size}x{model.reshuffle_patch_size} "
            "tiles as channels (reshuffle_patch_size), so it does not enlarge it; expected one without"
        )
    highest = getattr(model.low_scale_model, "max_noise_level", 0)
    if not highest:
        if noise_level is not None:
            raise InputError(f"noise level {noise_level}: this model adds no noise; leave it out")
        return None
    noise_level = min(NOISE_LEVEL, highest) if noise_level is None else noise_level
    if not 0 <= noise_level <= highest:
        raise InputError(f"noise level is {noise_level}; expected 0 to {highest}, this model's highest")
    return noise_level


def plan_upscale(
    model: LatentDiffusion,
    size: tuple[int, int],
    batch_size: int = 1,
    settings: Settings | None = None,
    *,
    tile: int | None = None,
    overlap: int | None = None,
    max_memory: int | None = None,
) -> Tiling:
    """Return what the networks should see at once of small pictures of size (height, width).

    Args:
        tile: side of the UNet's tiles, in pixels of the small picture; None is the whole if that fits.
        overlap: of those tiles; None is a quarter.
        max_memory: bytes of the process, or of the GPU's memory; None is what is free.

    Raises: InputError, OutOfMemory where even the smallest tiles do not fit.
    """
    settings = settings or Settings()
    noise_level = checked_level(model, None)
    frame, multiple = small_frame(model, *size), model.model.diffusion_model.downsampling_factor
    if overlap is not None and tile is None:
        raise InputError(f"overlap {overlap} is of tiles; give --tile too")
    forced = None if tile is None else tiling_of(tile, overlap, multiple)

    def conditioning(context: Tensor, side: int) -> Cond:
        small = torch.zeros(1, 3, side, side, device=model.device)
        return conditioned(model, context, small, noise_level, small)

    costs = measure(model, settings.dtype, conditioning)
    samples = 1 if settings.exact else batch_size * (1 if settings.guidance_scale == 1 else 2)
    sides = frame.inner_height, frame.inner_width
    return plan(costs, sides, batch_size, samples, multiple, model.device, max_memory, forced)


def conditioned(
    model: LatentDiffusion, context: Tensor, small: Tensor, noise_level: int | None, eps: Tensor
) -> Cond:
    """Return the conditioning of the small picture (1, 3, h, w), with or without noise eps (b, 3, h, w)."""
    if noise_level is None:
        return model.conditioning(context, small)
    return model.conditioning(context, small, noise_level, eps)


def small_frame(model: LatentDiffusion, height: int, width: int) -> Frame:
    """Return the frame of a small picture of height x width, whose sides are those of the latents."""
    return Frame.around(
        height, width, model.model.diffusion_model.downsampling_factor, model.downsampling_factor
    )


def _generate(
    diffuser: Diffuser,
    frame: Frame,
    image: np.ndarray,
    noise_level: int | None,
    draws: Draws,
    prompts: list[str],
    n_iter: int,
    given: Tensor | None,
) -> Iterator[Batch]:
    model = diffuser.model
    small: Tensor = frame.pad(from_uint8(image)).to(model.device)  # (1, 3, h, w)
    shape = diffuser.latent_shape(frame)
    for part in diffuser.batches(prompts, n_iter):
        noise = draws.batch(part.first, len(part.prompts))
        eps = noise.normal("conditioning", *small.shape[1:], channels_last=True)
        x_t = noise.normal("start", *shape)  # drawn in any case, so that the steps' noise is the seed's
        x_t = x_t if given is None else given[: len(part.prompts)]
        cond, uncond = diffuser.text(part.prompts)
        cond = conditioned(model, cond, small, noise_level, eps)
        uncond = None if uncond is None else model.unconditional(cond, uncond)
        latents = diffuser.sample(x_t, cond, uncond, noise)
        yield diffuser.batch(part, noise, latents, diffuser.decode(latents, frame))
