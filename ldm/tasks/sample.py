"""Pictures without a prompt: of models that know no text, and by the empty prompt of those that do.

A model without a text encoder draws from p(x) of its training data (arXiv 2112.10752, section 4.2). A
text-to-image model does so as well as it was taught to by training without captions now and then (guidance's
unconditional half, arXiv 2207.12598).

Draws, in order: x_T, then those of the sampler, as txt2img's.
"""

from collections.abc import Iterator

from torch import Tensor

from ldm.errors import InputError
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.tasks.latents import Position
from ldm.tasks.sampling import Batch, Settings, Track
from ldm.tasks.txt2img import txt2img

ACCEPTS = (None, "crossattn")


def sample(
    model: LatentDiffusion,
    count: int,
    *,
    seed: int,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
    latents: Tensor | None = None,
    resume: Position | None = None,
) -> Iterator[Batch]:
    """Make `count` pictures, `batch_size` at a time, and that n_iter times.

    Args:
        height, width: in pixels, any; None is what the model was trained at.
        settings: without any, guidance is off: a guidance_scale other than 1 leads away from the negative
            prompt, which a model with a text encoder must then be given.
        latents, resume: as txt2img's.

    Raises: InputError for settings that the sampler or the model cannot honour.
    """
    settings = settings or Settings(guidance_scale=1.0)
    _check_guidance(model, settings)
    native = model.image_size * model.downsampling_factor
    return txt2img(
        model,
        [""] * count,
        seed=seed,
        height=height or native,
        width=width or native,
        batch_size=batch_size,
        n_iter=n_iter,
        settings=settings,
        fixed_code=fixed_code,
        track=track,
        latents=latents,
        resume=resume,
        accepts=ACCEPTS,
    )


def _check_guidance(model: LatentDiffusion, settings: Settings) -> None:
    """Refuse guidance where its two halves are the same, or where there is no text to lead away from."""
    scale, text = settings.guidance_scale, settings.negative_prompt
    if model.cond_stage_model is None and (scale != 1 or text):
        raise InputError(
            f"this model has no text encoder: guidance scale {scale:g} and the negative prompt {text!r} mean "
            "nothing to it; expected scale 1 and no negative prompt"
        )
    if scale != 1 and not text:
        raise InputError(
            f"guidance scale {scale:g} changes nothing where prompt and negative prompt are empty; leave "
            "it at 1, or give a negative prompt to lead away from"
        )
