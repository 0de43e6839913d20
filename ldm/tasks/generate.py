"""The one door to the tasks: a model and a request in, batches of images out.

The request is loaded (`ldm.jobs.inputs`: files are `InputArray`s, `prompts` holds one prompt for each image
of a pass, a mask is prepared) and resolved (`ldm.requests.resolving`: no None means "the model's own").

A new task is a request (`ldm.requests`), and a file here with its `TASK`.
"""

import importlib
from collections.abc import Collection, Iterator, Sequence

import torch

from ldm.models.latent_diffusion import LatentDiffusion
from ldm.requests import Request, name_of
from ldm.tasks.batch import Batch
from ldm.tasks.latents import Position
from ldm.tasks.run import Run, Task, Track
from ldm.tasks.steering import Steer


def task_of(cls: type[Request]) -> Task:
    """Return how requests of a class are carried out: `TASK` of `ldm/tasks/NAME.py`."""
    return importlib.import_module(f"ldm.tasks.{name_of(cls)}").TASK


def generate(
    model: LatentDiffusion,
    request: Request,
    track: Track | None = None,
    resume: Position | None = None,
    dtype: torch.dtype | None = None,
    skip: Collection[int] = (),
    steers: Sequence[Steer] = (),
) -> Iterator[Batch]:
    """Make the images that a request asks for, a batch at a time.

    The model and the options are checked at the call, the inputs when the first batch is asked for.

    Args:
        track: wraps the iterator of the steps of a batch, of known length; where it ends before the steps do,
            sampling stops (StoppedAt).
        resume: resume an interrupted run here, exactly, to its end.
        dtype: what the networks compute in; None is that of an earlier run, else that of the weights.
        skip: numbers of batches that are not made.
        steers: the request's controls with their ControlNets.

    Raises: InputError for a model of another kind, or options that the sampler or the model cannot honour.
    """
    return Run(model, request, task_of(type(request)), track, resume, dtype, skip, steers).batches()
