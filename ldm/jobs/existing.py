"""Find the images of a run that an earlier run of the same command has saved (--skip-existing).

Metadata identify an image: it has the same task, options in force, input files, weights, prompt and place in
the run. The number of passes may be another one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.errors import InputError
from ldm.jobs.saving import Place
from ldm.requests import Request
from ldm.tasks.batch import prompt_batches

SHARED = ("format", "task", "inputs", "pass_size", "model")


def existing(folder: Path, run: dict[str, Any], request: Request) -> dict[Place, Path]:
    """Return the images in `folder` that a run would make again, by their place in the run.

    Args:
        run: what every image of the run records (`ldm.jobs.record.run_record`).
        request: loaded and resolved.
    """
    from ldm.imaging.metadata import read_record

    wanted = {_key(run, prompt, place): place for prompt, place in _places(request)}
    found = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            record = read_record(file)
            place = record["batch"], record["index_in_batch"]
            place = wanted.get(_key(record, record["prompt"], place))
        except (InputError, OSError, KeyError, TypeError, AttributeError):  # not an image of this toolkit
            continue
        if place is not None:
            found.setdefault(place, file)
    return found


def complete_batches(found: dict[Place, Path], request: Request) -> set[int]:
    """Return the batches of which all images were found."""
    missing = {place[0] for _, place in _places(request) if place not in found}
    return {place[0] for place in found} - missing


def _places(request: Request) -> Iterator[tuple[str, Place]]:
    for part in prompt_batches(request.prompts, request.n_samples, request.n_iter):
        yield from ((prompt, (part.index, k)) for k, prompt in enumerate(part.prompts))


def _key(record: dict[str, Any], prompt: str, place: Place) -> str:
    """Return what two records of the same image have in common."""
    options = {name: value for name, value in record["resolved"].items() if name != "n_iter"}
    return json.dumps([[record[name] for name in SHARED], options, prompt, place], sort_keys=True)
