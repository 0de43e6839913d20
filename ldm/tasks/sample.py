"""Images without a prompt: of models that know no text, and by the empty prompt of those that do.

A model without a text encoder draws from p(x) of its training data (arXiv 2112.10752, section 4.2). A
text-to-image model does so as well as it was taught to by training without captions now and then (guidance's
unconditional half, arXiv 2207.12598).

Noise is drawn in the order of text-to-image.
"""

from collections.abc import Iterator

from ldm.errors import InputError
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.requests import Sample
from ldm.tasks.batch import Batch
from ldm.tasks.run import Run, Task


def sample(run: Run, request: Sample) -> Iterator[Batch]:
    """Make images of the empty prompts of the request.

    Raises: InputError for guidance that changes nothing, or that the model has no text for.
    """
    check_guidance(run.model, request)
    for batch in run.each(run.frame(request.height, request.width)):
        yield batch.done(batch.denoise(batch.begin(), batch.cond()))


def check_guidance(model: LatentDiffusion, request: Sample) -> None:
    """Refuse guidance whose two halves are the same, or without text to lead away from."""
    scale, text = request.scale, request.negative_prompt
    if model.cond_stage_model is None and (scale != 1 or text):
        raise InputError(
            f"this model has no text encoder, so guidance scale {scale:g} and the negative prompt {text!r} "
            "mean nothing to it; expected scale 1 and no negative prompt"
        )
    if scale != 1 and not text:
        raise InputError(
            f"guidance scale {scale:g} changes nothing where prompt and negative prompt are empty; leave "
            "it at 1, or give a negative prompt to lead away from"
        )


TASK = Task(sample, (None, "crossattn"))
