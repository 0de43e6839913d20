"""The one door to the tasks: a model and a request in, batches of images out.

The request is loaded (`ldm.jobs.inputs`: files are `InputArray`s, `prompts` holds one prompt for each image
of a pass, a mask is prepared) and resolved (`ldm.requests.resolving`: no None means "the model's own").

A new task is a request (`ldm.requests`), a file here, and a row in `TASKS`.
"""

from collections.abc import Collection, Iterator

import torch

from ldm.models.latent_diffusion import LatentDiffusion
from ldm.requests import Depth2Img, Img2Img, Inpaint, Outpaint, Request, Sample, Txt2Img, Unclip, Upscale
from ldm.tasks.batch import Batch
from ldm.tasks.depth2img import check_depth_model, depth2img
from ldm.tasks.img2img import img2img
from ldm.tasks.inpaint import check_inpainting, inpaint
from ldm.tasks.latents import Position
from ldm.tasks.outpaint import outpaint
from ldm.tasks.run import Run, Task, Track
from ldm.tasks.sample import sample
from ldm.tasks.txt2img import txt2img
from ldm.tasks.unclip import unclip
from ldm.tasks.upscale import check_upscaler, upscale

TASKS: dict[type[Request], Task] = {
    Txt2Img: Task(txt2img),
    Img2Img: Task(img2img),
    Inpaint: Task(inpaint, ("crossattn", "hybrid"), check_inpainting, numpy_start=True),
    Outpaint: Task(outpaint, ("crossattn", "hybrid"), check_inpainting),
    Depth2Img: Task(depth2img, ("hybrid",), check_depth_model),
    Upscale: Task(upscale, ("hybrid-adm", "hybrid"), check_upscaler, numpy_start=True, always_planned=True),
    Unclip: Task(unclip, ("crossattn-adm",)),
    Sample: Task(sample, (None, "crossattn")),
}


def generate(
    model: LatentDiffusion,
    request: Request,
    track: Track | None = None,
    resume: Position | None = None,
    dtype: torch.dtype | None = None,
    skip: Collection[int] = (),
) -> Iterator[Batch]:
    """Make the images that a request asks for, a batch at a time.

    The model and the options are checked at the call, the inputs when the first batch is asked for.

    Args:
        track: wraps the iterator of the steps of a batch, of known length; where it ends before the steps do,
            sampling stops (StoppedAt).
        resume: resume an interrupted run here, exactly, to its end.
        dtype: what the networks compute in; None is that of an earlier run, else that of the weights.
        skip: numbers of batches that are not made.

    Raises: InputError for a model of another kind, or options that the sampler or the model cannot honour.
    """
    return Run(model, request, TASKS[type(request)], track, resume, dtype, skip).batches()
