"""Resume an interrupted run, or decode the latents of a finished image, with its original options.

    python scripts/txt2img.py --latents outputs/txt2img-samples/interrupted-00000.safetensors
    python scripts/txt2img.py --latents outputs/txt2img-samples/samples/00000.latents.safetensors

The file contains the request. Options given in addition may change where and how images are saved, but not
the images themselves.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError
from ldm.jobs.inputs import digests
from ldm.jobs.record import KEPT, task_of
from ldm.requests import Request, build, fields_of, names_of
from ldm.requests.groups import Model

if TYPE_CHECKING:
    from ldm.jobs.opening import OpenedModel
    from ldm.tasks.latents import LatentsFile

DECODING = ("txt2img", "sample")  # tasks that decode the latents of finished images


@dataclass(frozen=True)
class Resumed:
    """A request that continues from a latents file.

    Args:
        request: the request of the file, with the options given in addition.
        file: of an interrupted run, or of a finished image, which is only decoded.
    """

    request: Request
    file: "LatentsFile"

    @property
    def is_finished(self) -> bool:
        return self.file.kind == "final"

    def check(self, loaded: Request) -> None:
        """Raise InputError if an input image, mask, ... differs from that of the interrupted run."""
        before, now = self.file.record.get("inputs", {}), digests(loaded)
        for name in () if self.is_finished else before.keys() | now.keys():
            if before.get(name) != now.get(name):
                flag = fields_of(type(loaded))[name].flag
                raise InputError(
                    f"{flag} {getattr(self.request, name)} is not the file that {self.file.path} was made "
                    "with"
                )

    def check_model(self, opened: "OpenedModel") -> None:
        """Raise InputError if the weights differ from those of the interrupted run."""
        before, now = self.file.record.get("model", {}), opened.record()
        if not self.is_finished and before.get("sha256") != now["sha256"]:
            raise InputError(
                f"{self.file.path} was made with {before.get('checkpoint')} (SHA-256 "
                f"{before.get('sha256')}), but the loaded model is {now['checkpoint']} ({now['sha256']}); "
                "give --ckpt with those weights"
            )


def resumed(cls: type[Request], given: Mapping[str, Any]) -> Resumed | None:
    """Return the request that the file of --latents continues; None if the file is noise to start from.

    Args:
        given: the options of the command line, including `latents`.

    Raises:
        InputError: an option contradicts the file, or the file belongs to another task.
    """
    from ldm.tasks.latents import read_latents, read_record

    path = given["latents"]
    stored = read_record(path)
    kind, task = stored.get("kind"), cls.__name__.lower()
    if kind == "stopped" and stored.get("task") != task:
        raise InputError(
            f"{path} belongs to a run of scripts/{stored.get('task')}.py; resume it with that script"
        )
    if kind != "stopped" and (kind != "final" or task not in DECODING):
        return None
    values = {
        name: _found(str(stored.get("folder", "")), value) if fields_of(cls)[name].option.is_file else value
        for name, value in dict(stored.get("command", {})).items()
        if name in fields_of(cls)
    }
    request = build(cls, values)
    own = {name: value for name, value in given.items() if name != "latents"}
    for name in sorted(own):
        old, new = getattr(request, name), own[name]
        if old != new and not _may_change(cls, name, kind):
            flag = fields_of(cls)[name].flag
            raise InputError(
                f"{flag} {new} contradicts {path}, which was made with {flag} {old}; leave it out"
            )
    request = replace(request, **own)
    if kind == "final":  # one image, whose latents are already saved
        request = replace(request, no_grid=True, save_latents=False, latents=None)
    return Resumed(request, read_latents(path))


def _may_change(cls: type[Request], name: str, kind: str) -> bool:
    decodes = kind == "final" and name in names_of(Model)
    return decodes or name in KEPT or not fields_of(cls)[name].option.changes_image


def _found(folder: str, value: Any) -> Any:
    """Return a path relative to `folder`, in which it was given, if it does not exist from here."""
    if isinstance(value, list):
        return [_found(folder, each) for each in value]
    if not isinstance(value, str) or not value:
        return value
    there = os.path.join(folder, value)
    return there if not os.path.exists(value) and os.path.exists(there) else value


def decoded_record(file: "LatentsFile", opened: "OpenedModel") -> dict[str, Any]:
    """Return the record of an image that is decoded again: its former record, with the present model."""
    dropped = ("kind", "command", "folder", "images_in_batch")
    kept = {name: value for name, value in file.record.items() if name not in dropped}
    return kept | {"model": opened.record()}


def batches_left(request: Request, resumed: Resumed | None) -> int:
    """Return the number of batches that a loaded request still has to generate."""
    if resumed is not None and resumed.is_finished:
        return 1
    per_pass = -(-len(request.prompts) // request.n_samples)
    total = request.n_iter * per_pass
    if resumed is None:
        return total
    passes, within = divmod(resumed.file.position.first, len(request.prompts))
    return total - passes * per_pass - within // request.n_samples


def command_to_resume(path: Path, request: Request) -> str:
    """Return the command line that resumes an interrupted run."""
    import shlex

    return shlex.join(["python", f"scripts/{task_of(request)}.py", "--latents", str(path)])
