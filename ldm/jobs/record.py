"""The record of how an image was made, from which it can be made again.

    format      2; increased when the meaning of an entry changes
    task        name of the request
    request     the options as given, without those at their defaults
    resolved    the options in force, with the defaults of the model and the sampler filled in
    tiling      what the networks saw at once, in latents, if that was not the whole image
    inputs      name and SHA-256 of every input file
    prompts     the prompts of the image's batch, if they are not all the same
    prompt, seed, iteration, batch, index_in_batch, pass_size      which image of the run it is
    model       name and digest of the weights, the configuration, and what replaced a part
    device, dtype, computed_in, torch, version              what it was made with

No date and no absolute path is stored: the same command gives the same bytes.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ldm
from ldm.jobs.inputs import digests
from ldm.requests import Request, fields_of, name_of, record

if TYPE_CHECKING:
    from ldm.jobs.opening import OpenedModel
    from ldm.tasks.batch import Batch

FORMAT = 2
OTHER_FILES = {  # of the model's record
    "config": "--config", "vae": "--vae", "depth": "--depth-ckpt", "controls": "--control-ckpt",
}  # fmt: skip
# options that may change on resume but belong to the record
KEPT = ("ckpt", "watermark", "format", "quality")
# options that are replaced by the prompts of the batch
PROMPT_OPTIONS = ("prompt", "added_prompt", "from_file", "repeat", "combinations", "wildcards", "prompts")


def run_record(asked: Request, resolved: Request, opened: "OpenedModel") -> dict[str, Any]:
    """Return the part of the record that all images of a run share."""
    import torch

    return {
        "format": FORMAT,
        "version": ldm.__version__,
        "task": name_of(type(asked)),
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
    """Return the record of one image of a batch."""
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
    if batch.tiling != type(batch.tiling)():
        where["tiling"] = asdict(batch.tiling)
    return run | where


def options_of_image(request: Request, whole: bool = False) -> dict[str, Any]:
    """Return the options that affect the image; absolute paths are reduced to the file name."""
    fields = fields_of(type(request))
    found = record(request, whole)
    return {
        name: _portable(value) if fields[name].option.is_file or name == "controls" else value
        for name, value in found.items()
        if (fields[name].option.changes_image or name in KEPT)
        and not (whole and (value is None or name in PROMPT_OPTIONS))
    }


def _portable(value: Any) -> Any:
    """Return an absolute path as its file name; other values as they are."""
    if isinstance(value, list):
        return [_portable(each) for each in value]
    if isinstance(value, dict):
        return {name: _portable(each) for name, each in value.items()}
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
