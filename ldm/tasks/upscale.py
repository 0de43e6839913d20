"""Upscaling four times: the latents have the small image's sides, and the decoder enlarges.

    concat = the small image at noise level l,   label = l        (arXiv 2106.15282; latent_upscale.py)

More noise lets the model invent more: 20 in the reference, up to the model's `max_noise_level`.

Noise is drawn in this order: the small image's, once a run, then the start noise, from NumPy as in the
reference, and one draw a step.
"""

import logging
from collections.abc import Iterator

from torch import Tensor

from ldm.diffusion.cond import Cond
from ldm.errors import InputError
from ldm.imaging.back_projection import back_project
from ldm.imaging.colour import from_uint8
from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.latent_upscale import LatentUpscaleDiffusion, LatentUpscaleFinetuneDiffusion
from ldm.requests import Upscale
from ldm.requests.resolving import NOISE_LEVEL
from ldm.tasks.batch import Batch
from ldm.tasks.run import Run, Task

KINDS = (LatentUpscaleDiffusion, LatentUpscaleFinetuneDiffusion)

logger = logging.getLogger(__name__)


def upscale(run: Run, request: Upscale) -> Iterator[Batch]:
    """Make images exactly 4 times as large as `request.init_img`, of any size.

    An image that the model cannot take is padded by mirroring, and the result is cropped. With `faithful` the
    result, shrunk, is the small image again, colours and all; the default is to do so where tiles are used,
    which see less of the image and may drift in colour.

    Raises: InputError for a noise level that the model does not have.
    """
    model, level = run.model, noise_level_of(run.model, request.noise_level)
    image = from_uint8(request.init_img.values)  # (1, 3, h, w)
    unet = model.model.diffusion_model
    frame = Frame.around(*image.shape[-2:], unet.downsampling_factor, model.downsampling_factor)
    run.plan(frame)
    faithful = run.tiling.tile is not None if request.faithful is None else request.faithful == "on"
    if faithful and request.faithful is None:
        logger.info("tiles: the result is made to agree with the small image's colours")
    small = frame.pad(image).to(model.device)
    for batch in run.each(frame):
        eps = batch.noise.normal("conditioning", *small.shape[1:], channels_last=True)
        x_t = batch.begin()

        def conditioning(context: Tensor, eps: Tensor = eps) -> Cond:
            noised = () if level is None else (level, eps)
            return model.conditioning(context, small, *noised)

        latents = batch.denoise(x_t, batch.cond(conditioning))
        images = batch.decode(latents)
        yield batch.done(latents, back_project(images, image) if faithful else images)


def check_upscaler(model: LatentDiffusion) -> None:
    """Raise InputError where a model is no upscaler."""
    if not isinstance(model, KINDS):
        raise InputError(f"this model is a {type(model).__name__}; expected {KINDS[0].__name__}, an upscaler")
    if (count := getattr(model, "reshuffle_patch_size", None)) is not None:
        raise InputError(
            f"this upscaler cuts the image into {count}x{count} tiles as channels (reshuffle_patch_size), so "
            "it does not enlarge it; expected one without"
        )


def noise_level_of(model: LatentDiffusion, noise_level: int | None) -> int | None:
    """Return the noise level for an upscaler; None for one that adds no noise.

    Raises: InputError where the model does not have that level.
    """
    highest = getattr(model.low_scale_model, "max_noise_level", 0)
    if not highest:
        if noise_level is not None:
            raise InputError(f"noise level {noise_level}: this model adds no noise; leave it out")
        return None
    noise_level = min(NOISE_LEVEL, highest) if noise_level is None else noise_level
    if not 0 <= noise_level <= highest:
        raise InputError(f"noise level is {noise_level}; expected 0 to {highest}, this model's highest")
    return noise_level


TASK = Task(upscale, ("hybrid-adm", "hybrid"), check_upscaler, numpy_start=True, always_planned=True)
