"""Make an image again from its own metadata, and compare the two.

The request in the metadata says everything but where the files are. They are looked for under their recorded
names, next to the image and in folders of the user's choice, and must have the recorded SHA-256.

With `--rng reference` an image depends on the random numbers of the batches before its own, so those are made
too (with empty prompts, which draw the same); with the other sources of random numbers only its batch is.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError
from ldm.files.digest import fresh_sha256, sha256
from ldm.jobs.execute import generate
from ldm.jobs.inputs import load_inputs
from ldm.jobs.opening import Models
from ldm.jobs.record import FORMAT, PROMPT_OPTIONS, run_record
from ldm.jobs.saving import Saving
from ldm.jobs.watch import SILENT, Watch
from ldm.requests import NAMES, Request, build, fields_of, find
from ldm.requests.resolving import resolved

if TYPE_CHECKING:
    from ldm.tasks.batch import Batch

NEAR = 3  # levels of 255 by which another device or kernel may round differently

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rerun:
    """An image that was made again.

    Args:
        image: the one it was made from.
        file: the new one.
        difference: largest difference of two pixels, in levels of 255; None if something was changed.
        versions: what differs in the software, such as "torch 2.13.0, now 2.14.1".
    """

    image: Path
    file: Path
    difference: int | None
    versions: str

    @property
    def is_same(self) -> bool:
        return self.difference is None or self.difference <= NEAR

    def sentence(self) -> str:
        """Return the comparison in words."""
        after = f" ({self.versions})" if self.versions else ""
        if self.difference is None:
            return f"{self.image}: changed as asked, {self.file}"
        if self.difference == 0:
            return f"{self.image}: equal"
        word = "near" if self.is_same else "different"
        return f"{self.image}: {word}, largest difference {self.difference} of 255, {self.file}{after}"


def rerun(
    image: Path,
    outdir: Path,
    changes: Mapping[str, Any] | None = None,
    folders: Iterable[Path] = (),
    device: str = "auto",
    models: Models | None = None,
    watch: Watch = SILENT,
) -> Rerun:
    """Make an image again.

    Args:
        outdir: folder of the new image.
        changes: options to change, by name.
        folders: where the weights and input files are looked for, besides their recorded place.
        models: keeps the model open between images.

    Raises: InputError naming what is missing or has changed.
    """
    from ldm.imaging.metadata import read_record

    found = read_record(image)
    if found.get("format") != FORMAT or found.get("task") not in NAMES:
        raise InputError(
            f"{image}: its metadata have format {found.get('format', 1)}; expected {FORMAT}, as current "
            "versions write it"
        )
    try:
        request, first_batch = _request(found, image, [image.parent, *folders])
        request = replace(request, **_read(request, changes or {}), outdir=str(outdir), device=device)
        opened = (models or Models()).open(request, watch)
        _check_model(found, opened.record(), changes or {}, image)
        wanted = found["batch"] - first_batch
        saving = Saving(replace(request, no_grid=True))
        loaded = load_inputs(request)
        saving.run = run_record(request, resolved(loaded, opened.facts), opened)
        sampler = saving.run["resolved"]["sampler"]
        batches = generate(
            opened.model, loaded, lambda steps, total: watch.steps(steps, total, sampler)
        )
        for batch in watch.batches(batches, wanted + 1):
            if batch.index == wanted:
                saving.add(_one_of(batch, found["index_in_batch"]))
                break
    except (KeyError, TypeError) as error:
        raise InputError(f"{image}: its metadata are damaged ({type(error).__name__}: {error})") from error
    saving.check()
    difference = None if changes else _difference(image, saving.saved[0])
    now = {"ldm": saving.run["version"], "torch": saving.run["torch"], "device": saving.run["device"]}
    then = {"ldm": found["version"], "torch": found["torch"], "device": found["device"]}
    versions = ", ".join(f"{name} {then[name]}, now {now[name]}" for name in now if then[name] != now[name])
    return Rerun(image, saving.saved[0], difference, versions)


def _request(found: dict[str, Any], image: Path, folders: list[Path]) -> tuple[Request, int]:
    """Return the request that makes an image's batch, and the number of batches that it leaves out."""
    cls = find(found["task"])
    options = {name: value for name, value in found["request"].items() if name not in PROMPT_OPTIONS}
    options |= _files(cls, found, image, folders)
    size, count = found["pass_size"], found["resolved"]["n_samples"]
    batches_a_pass = -(-size // count)
    first = (found["batch"] - found["iteration"] * batches_a_pass) * count  # within the pass
    prompts = found.get("prompts") or [found["prompt"]] * min(count, size - first)
    if found["resolved"]["rng"] == "reference":
        whole = [""] * first + prompts + [""] * (size - first - len(prompts))
        return build(cls, options | {"prompts": whole, "n_iter": found["iteration"] + 1}), 0
    seed = found["resolved"]["seed"]
    if not found["resolved"]["fixed_code"]:
        seed += found["iteration"] * size + first
    return build(cls, options | {"prompts": prompts, "n_iter": 1, "seed": seed}), found["batch"]


def _files(cls: type[Request], found: dict[str, Any], image: Path, folders: list[Path]) -> dict[str, Any]:
    """Return the paths of the weights and inputs. Raises: InputError naming those missing or changed."""
    paths, wrong = {}, []
    expected = dict(found["inputs"])
    if found["request"].get("ckpt") is not None:
        expected["ckpt"] = {"file": found["request"]["ckpt"], "sha256": found["model"]["sha256"]}
    for name, about in expected.items():
        for each in about if isinstance(about, list) else [about]:
            if each["file"] is None:
                if name == "mask" and "init_img" in expected:  # its transparency
                    continue
                if name == "depth" and found["request"].get("depth_from") == "alpha":
                    continue
                wrong.append(f"{fields_of(cls)[name].flag} came from memory, not from a file")
                continue
            recorded = found["request"].get(name)
            recorded = recorded if isinstance(recorded, str) else each["file"]
            path = _search(recorded, each["sha256"], folders, big=name == "ckpt")
            if isinstance(path, str):
                wrong.append(f"{fields_of(cls)[name].flag} {path}")
            elif isinstance(about, list):
                paths.setdefault(name, []).append(str(path))
            else:
                paths[name] = str(path)
    for name, value in found["request"].items():  # such as --config and --vae, which have no digest
        if name in fields_of(cls) and fields_of(cls)[name].option.is_file and name not in expected:
            if name not in PROMPT_OPTIONS and isinstance(value, str):
                paths[name] = str(_search(value, None, folders) or value)
    if wrong:
        raise InputError(f"{image}: {'; '.join(wrong)}; give the folder of the files with --files DIR")
    return paths


def _search(recorded: str, digest: str | None, folders: list[Path], big: bool = False) -> Path | str:
    """Return the file of a digest, or what is wrong with those of its name."""
    candidates = [Path(recorded), *(folder / recorded for folder in folders)]
    candidates += [folder / Path(recorded).name for folder in folders]
    there = [path for path in candidates if path.exists()]
    for path in there:
        if digest is None or path.is_dir() or (sha256 if big else fresh_sha256)(path) == digest:
            return path
    return f"{there[0]} has changed" if there else f"{recorded} is missing"


def _check_model(
    found: dict[str, Any], now: dict[str, Any], changes: Mapping[str, Any], image: Path
) -> None:
    then = found["model"]
    if "ckpt" not in changes and then.get("sha256") != now["sha256"]:
        raise InputError(
            f"{image}: was made with {then.get('checkpoint')} (SHA-256 {then.get('sha256')}), and the model "
            f"opened is {now['checkpoint']} ({now['sha256']}); give the folder of those weights: --files DIR"
        )


def _read(request: Request, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changed options; a new prompt takes the place of all of a pass."""
    changed = build(type(request), changes)
    read = {name: getattr(changed, name) for name in changes}
    return read | ({"prompts": (changed.prompt,) * len(request.prompts)} if "prompt" in changes else {})


def _one_of(batch: "Batch", position: int) -> "Batch":
    """Return a batch of one image."""
    one = slice(position, position + 1)
    return replace(
        batch, prompts=batch.prompts[one], images=batch.images[one], latents=batch.latents[one],
        seeds=batch.seeds[one], offset=batch.offset + position,
    )  # fmt: skip


def _difference(before: Path, after: Path) -> int:
    """Return the largest difference of two images' pixels, in levels; 256 for other sizes or channels."""
    import numpy as np
    from PIL import Image

    with Image.open(before) as a, Image.open(after) as b:
        if (a.size, a.mode) != (b.size, b.mode):
            return 256
        return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())
