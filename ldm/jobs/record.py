"""What an image records of how it was made, and the request that makes it again.

    format      2; raised when the meaning of an entry changes
    task        the name of the request
    request     the options as they were given, those with defaults left out
    resolved    all options that decide the image, with the model's and the sampler's defaults in place
    inputs      name and SHA-256 of every file that went in
    prompts     the prompts of the image's batch, where they are not all its own
    prompt, seed, iteration, batch, index_in_batch, pass_size      which image of the run it is
    model, device, dtype, computed_in, torch, version              what made it

No date and no absolute path is stored: the same command gives the same bytes.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ldm
from ldm.jobs.inputs import digests
from ldm.requests import Request, fields_of, record

if TYPE_CHECKING:
    from ldm.jobs.opening import OpenedModel
    from ldm.tasks.batch import Batch

FORMAT = 2
KEPT = ("ckpt", "watermark")  # options that may change on resume, and yet belong to the record
# replaced by the prompts of the batch
PROMPT_OPTIONS = ("prompt", "from_file", "repeat", "combinations", "wildcards", "prompts")


def run_record(asked: Request, resolved: Request, opened: "OpenedModel") -> dict[str, Any]:
    """Return what every image of a run records."""
    import torch

    return {
        "format": FORMAT,
        "version": ldm.__version__,
        "task": task_of(asked),
        "request": options_of_image(asked),
        "resolved": options_of_image(resolved, whole=True),
        "inputs": digests(resolved),
        "pass_size": len(resolved.prompts),
        "model": opened.record(),
        "device": str(opened.model.device),
        "dtype": str(opened.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def image_record(run: dict[str, Any], batch: "Batch", position: int) -> dict[str, Any]:
    """Return what one image of a batch records."""
    prompt = batch.prompts[position]
    where = {
        "prompt": prompt,
        "iteration": batch.iteration,
        "batch": batch.index,
        "index_in_batch": batch.offset + position,
        "seed": batch.seeds[position] if batch.seeds else run.get("seed", run["resolved"]["seed"]),
    }
    if set(batch.prompts) != {prompt}:
        where["prompts"] = list(batch.prompts)
    if batch.computed_in:
        where["computed_in"] = batch.computed_in
    return run | where


def task_of(request: Request) -> str:
    return type(request).__name__.lower()


def options_of_image(request: Request, whole: bool = False) -> dict[str, Any]:
    """Return the options that decide what an image looks like; paths are kept relative or as a name."""
    fields = fields_of(type(request))
    found = record(request, whole)
    return {
        name: _portable(value) if fields[name].option.is_file else value
        for name, value in found.items()
        if (fields[name].option.changes_image or name in KEPT)
        and not (whole and (value is None or name in PROMPT_OPTIONS))
    }


def _portable(value: Any) -> Any:
    """Return a path without the folders of this machine."""
    if isinstance(value, list):
        return [_portable(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
