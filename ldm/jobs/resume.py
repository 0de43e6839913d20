"""Resume an interrupted run, or decode the latents of a finished image, with the options it was made with.

    python scripts/txt2img.py --latents outputs/txt2img-samples/interrupted-00000.safetensors
    python scripts/txt2img.py --latents outputs/txt2img-samples/samples/00000.latents.safetensors

The file contains the request. Options given with it may change where and how images are saved, but not the
images.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import wording
from ldm.errors import InputError
from ldm.jobs.controls import moved
from ldm.jobs.inputs import digests
from ldm.jobs.record import FORMAT, KEPT, OTHER_FILES
from ldm.requests import Request, build, fields_of, name_of, names_of
from ldm.requests.groups import Model
from ldm.wording import script

if TYPE_CHECKING:
    from ldm.jobs.opening import OpenedModel
    from ldm.tasks.latents import LatentsFile


@dataclass(frozen=True)
class Resumed:
    """A request that continues from a file.

    Args:
        request: what is made.
        file: of an interrupted run, or of a finished image, which is only decoded.
    """

    request: Request
    file: "LatentsFile"

    @property
    def is_finished(self) -> bool:
        return self.file.kind == "final"

    def check(self, loaded: Request) -> None:
        """Refuse to resume with another image, mask, ... than the run began with. Raises: InputError."""
        before, now = self.file.record.get("inputs", {}), digests(loaded)
        for name in () if self.is_finished else sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                flag, changed = fields_of(type(loaded))[name].flag, _changed(before.get(name), now.get(name))
                raise InputError(f"{flag}{changed} has changed since {self.file.path} was saved")

    def check_model(self, opened: "OpenedModel") -> None:
        """Refuse to resume with other weights. Raises: InputError."""
        before, now = self.file.record.get("model", {}), opened.record()
        if self.is_finished:
            return
        if before.get("sha256") != now["sha256"]:
            raise InputError(
                f"{self.file.path} is of {before.get('checkpoint')} (SHA-256 {before.get('sha256')}), and "
                f"this is {now['checkpoint']} ({now['sha256']}); give --ckpt with those weights"
            )
        for part, flag in OTHER_FILES.items():
            digest = f"{part}_sha256"
            if digest in before and before[digest] != now.get(digest):
                raise InputError(f"{flag} {now.get(part)} has changed since {self.file.path} was saved")


def _changed(before: Any, now: Any) -> str:
    """Return the name of the file, of one or several, that is not what it was."""
    several = now if isinstance(now, list) else [now]
    then = before if isinstance(before, list) else [before]
    return next((f" {each['file']}" for each in several if each and each["file"] and each not in then), "")


def resumed(cls: type[Request], given: Mapping[str, Any]) -> Resumed | None:
    """Return what the file of --latents continues; None where it is noise to start from.

    Args:
        given: the options of the command, --latents among them.

    Raises: InputError where an option contradicts the file, or it belongs to another task.
    """
    from ldm.tasks.latents import read_latents, read_record

    path = given["latents"]
    stored = read_record(path)
    kind, task = stored.get("kind"), name_of(cls)
    if kind == "stopped" and stored.get("task") != task:
        raise InputError(f"{path} is of a run of {script(stored.get('task'))}; resume it with that")
    if kind != "stopped" and (kind != "final" or _has_image(cls)):
        return None
    command, folder = stored.get("command"), str(stored.get("folder", ""))
    if stored.get("format") != FORMAT or not isinstance(command, dict):
        found = stored.get("format", 1)
        raise InputError(f"{path} was saved by another version, in format {found}; expected {FORMAT}")
    if stored.get("task") != task:  # its latents are decoded without its own options
        command = {name: value for name, value in command.items() if name in fields_of(cls)}
    build(cls, command)  # refuses options that this version does not have
    is_file = {name: each.option.is_file for name, each in fields_of(cls).items()}
    values = {name: _found(folder, value) if is_file[name] else value for name, value in command.items()}
    if "controls" in values:
        values["controls"] = [moved(unit, partial(_found, folder)) for unit in values["controls"]]
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
    if kind == "final":  # one image, whose latents are there
        request = replace(request, no_grid=True, save_latents=False, skip_existing=False, latents=None)
    return Resumed(request, read_latents(path))


def _has_image(cls: type[Request]) -> bool:
    """Return whether the task has an input image; the others decode the latents of a finished image."""
    return any(each.option.is_image for each in fields_of(cls).values())


def _may_change(cls: type[Request], name: str, kind: str) -> bool:
    decodes = kind == "final" and name in names_of(Model)
    return decodes or name in KEPT or not fields_of(cls)[name].option.changes_image


def _found(folder: str, value: Any) -> Any:
    """Return a path that was given in a folder, where it is not found from here."""
    if isinstance(value, list):
        return [_found(folder, each) for each in value]
    if not isinstance(value, str) or not value:
        return value
    there = os.path.join(folder, value)
    return there if not os.path.exists(value) and os.path.exists(there) else value


def decoded_record(file: "LatentsFile", opened: "OpenedModel") -> dict[str, Any]:
    """Return what an image that is decoded again records: what it did, and the model of today."""
    dropped = ("kind", "command", "folder", "images_in_batch")
    kept = {name: value for name, value in file.record.items() if name not in dropped}
    return kept | {"model": opened.record()}


def batches_left(request: Request, resumed: Resumed | None, skip: Collection[int] = ()) -> int:
    """Return how many batches a loaded request still has to make, but for the numbers in `skip`."""
    if resumed is not None and resumed.is_finished:
        return 1
    per_pass = -(-len(request.prompts) // request.n_samples)
    total = request.n_iter * per_pass
    done = 0
    if resumed is not None:
        passes, within = divmod(resumed.file.position.first, len(request.prompts))
        done = passes * per_pass + within // request.n_samples
    return len(set(range(done, total)) - set(skip))


def command_to_resume(path: Path, request: Request) -> str:
    """Return the command line that resumes an interrupted run, with the script as it was started."""
    import shlex
    import sys

    name = name_of(type(request))
    own = sys.argv[0] if os.path.basename(sys.argv[0]) == f"{name}.py" else script(name)
    start = [script(name)] if wording.by_command else ["python", own]
    return shlex.join([*start, "--latents", str(path)])
