"""Make an image again from its own metadata, and compare the two.

The metadata contain the complete request, except for the location of its files. These are looked for under
their recorded paths, next to the image and in folders of the user's choice, and must have the recorded
SHA-256.

With `--rng reference` an image depends on the random numbers of earlier batches, so these are drawn too, but
the networks see only the image's own batch.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError
from ldm.files.digest import digest_of
from ldm.jobs.controls import setting_files, steers
from ldm.jobs.inputs import load_inputs
from ldm.jobs.opening import Models
from ldm.jobs.record import FORMAT, OTHER_FILES, PROMPT_OPTIONS, run_record
from ldm.jobs.saving import Saving
from ldm.jobs.watch import SILENT, Watch
from ldm.requests import NAMES, Request, build, fields_of, find
from ldm.requests.resolving import resolved
from ldm.wording import script

if TYPE_CHECKING:
    from ldm.tasks.batch import Batch

NEAR = 3  # levels of 255 by which another device or kernel may round differently

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rerun:
    """An image that was made again.

    Args:
        image: the original image file.
        file: the new image file.
        difference: largest difference of two pixels, in levels of 255; 256 for another size, None if options
            were changed.
        versions: differences in software and device, such as "torch 2.13.0, now 2.14.1".
    """

    image: Path
    file: Path
    difference: int | None
    versions: str

    @property
    def is_same(self) -> bool:
        return self.difference is None or self.difference <= NEAR

    def sentence(self, is_kept: bool = True) -> str:
        """Return the result as one line of text; without the new file, unless that is kept."""
        if self.difference is None:
            return f"{self.image}: changed as asked, {self.file}"
        if self.difference == 0:
            return f"{self.image}: equal"
        word = "near" if self.is_same else "different"
        if self.difference < 256:
            word += f", largest difference {self.difference} of 255"
        where = f", {self.file}" if is_kept else ""
        return f"{self.image}: {word}{where}" + (f" ({self.versions})" if self.versions else "")


def rerun(
    image: Path,
    outdir: Path,
    changes: Mapping[str, Any] | None = None,
    folders: Iterable[Path] = (),
    device: str = "auto",
    models: Models | None = None,
    watch: Watch = SILENT,
) -> Rerun:
    """Make an image again from its metadata.

    Args:
        outdir: folder of the new image.
        changes: options to change, by name.
        folders: further folders in which the weights and input files are looked for.
        models: keeps the model open between images.

    Raises:
        InputError: files are missing or have changed, or the metadata cannot be used.
    """
    from ldm.tasks.generate import generate

    found = _record(image)
    changes = _by_option(find(found["task"]), changes or {})
    try:
        request, wanted = _request(found, image, [image.parent, *folders], changes)
        position, then = found["index_in_batch"], [found[name] for name in ("version", "torch", "device")]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{image}: its metadata are damaged ({type(error).__name__}: {error})") from error
    request = replace(request, outdir=str(outdir), device=device)
    request = replace(request, **_read(request, changes))
    saving = Saving(replace(request, no_grid=True))
    loaded = load_inputs(request)
    opened = (models or Models()).open(request, watch)
    _check_model(found, opened.record(), changes, image)
    asked = resolved(loaded, opened.facts)
    saving.run = run_record(request, asked, opened)
    batches = generate(
        opened.model, asked, lambda steps, total: watch.steps(steps, total, asked.sampler),
        dtype=opened.dtype, skip=range(wanted), steers=steers(asked, opened.controls),
    )  # fmt: skip
    for batch in watch.batches(batches, 1):
        if batch.index == wanted:
            saving.add(_one_of(batch, position))
            break
    saving.check()
    if not saving.saved:
        raise InputError(f"{image}: the run has no image {position} in batch {wanted}")
    difference = None if changes else _difference(image, saving.saved[0])
    now = [saving.run[name] for name in ("version", "torch", "device")]
    compared = zip(("ldm", "torch", "device"), then, now, strict=True)
    versions = ", ".join(f"{name} {old}, now {new}" for name, old, new in compared if old != new)
    return Rerun(image, saving.saved[0], difference, versions)


def _record(image: Path) -> dict[str, Any]:
    """Return the metadata of an image."""
    from ldm.imaging.metadata import read_record

    found = read_record(image)
    if found.get("format") != FORMAT or found.get("task") not in NAMES:
        raise InputError(
            f"{image}: its metadata have format {found.get('format', 1)}; expected {FORMAT}, as current "
            "versions write it"
        )
    if "images" in found and "batch" not in found:
        raise InputError(f"{image}: is a grid of {found['images']} images; give the images in samples/")
    return found


def _request(
    found: dict[str, Any], image: Path, folders: list[Path], changes: Mapping[str, Any]
) -> tuple[Request, int]:
    """Return the request that generates the image's batch, and the number of this batch in it."""
    cls = find(found["task"])
    options = {name: value for name, value in found["request"].items() if name not in PROMPT_OPTIONS}
    kept = {name: value for name, value in found["request"].items() if name not in changes}
    options |= _files(cls, found | {"request": kept}, image, folders)
    size, count = found["pass_size"], found["resolved"]["n_samples"]
    batches_a_pass = -(-size // count)
    first = (found["batch"] - found["iteration"] * batches_a_pass) * count  # within the pass
    prompts = found.get("prompts") or [found["prompt"]] * min(count, size - first)
    if found["resolved"]["rng"] == "reference":
        whole = [""] * first + prompts + [""] * (size - first - len(prompts))
        return build(cls, options | {"prompts": whole, "n_iter": found["iteration"] + 1}), found["batch"]
    seed = found["resolved"]["seed"]
    if not found["resolved"]["fixed_code"]:
        seed += found["iteration"] * size + first
    return build(cls, options | {"prompts": prompts, "n_iter": 1, "seed": seed}), 0


def _files(cls: type[Request], found: dict[str, Any], image: Path, folders: list[Path]) -> dict[str, Any]:
    """Return the paths of weights and inputs. Raises: InputError if some are missing or have changed."""
    paths, wrong = {}, []
    if units := found["request"].get("controls"):
        paths["controls"] = units = [dict(unit) for unit in units]
        digests = iter(found["inputs"].get("controls", ()))
        for unit in units:
            if "file" in unit:
                path = _found(unit["file"], next(digests)["sha256"], folders)
                wrong += [] if isinstance(path, Path) else [f"--control {unit['kind']} {path}"]
                unit["file"] = str(path)
            for name in setting_files(unit):
                path = _found(unit["settings"][name], None, folders)
                wrong += [] if isinstance(path, Path) else [f"--control {unit['kind']}, {name}: {path}"]
                unit["settings"] = unit["settings"] | {name: str(path)}
    for name, file, digest in _needed(cls, found):
        each = fields_of(cls)[name]
        path = _found(file, digest, folders)
        if isinstance(path, Path):
            paths[name] = [*paths.get(name, ()), str(path)] if each.many else str(path)
        elif name != "config":  # which may be one of those that are included
            wrong.append(f"{each.flag} {path}")
    if wrong:
        raise InputError(f"{image}: {'; '.join(wrong)}; give the folder of the files with --files DIR")
    return paths


def _needed(cls: type[Request], found: dict[str, Any]) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield (option, file, SHA-256) of the weights and inputs; --config is compared by what it says."""
    model = found["model"]
    digests = {"ckpt": [model["sha256"]]}
    digests |= {"vae": [model.get("vae_sha256")], "depth_ckpt": [model.get("depth_sha256")]}
    for name, about in found["inputs"].items():
        digests[name] = [each["sha256"] for each in (about if isinstance(about, list) else [about])]
    for name, value in found["request"].items():  # others come from these: a mask from transparency
        if name in fields_of(cls) and fields_of(cls)[name].option.is_file and name not in PROMPT_OPTIONS:
            files = value if isinstance(value, list) else [value]
            for file, digest in zip(files, digests.get(name, [None] * len(files)), strict=True):
                yield name, file, digest


def _found(file: str | None, digest: str | None, folders: list[Path]) -> Path | str:
    """Return the path of a recorded file, or why there is none."""
    return "was given as an array, not as a file" if file is None else _search(file, digest, folders)


def _search(recorded: str, digest: str | None, folders: list[Path]) -> Path | str:
    """Return the file with this digest, or text that states why there is none."""
    candidates = [Path(recorded), *(folder / recorded for folder in folders)]
    candidates += [folder / Path(recorded).name for folder in folders]
    there = [path for path in candidates if path.exists()]
    for path in there:
        if digest is None or digest_of(path) == digest:
            return path
    return f"{there[0]} has changed" if there else f"{recorded} is missing"


def _check_model(found: dict[str, Any], now: dict[str, Any], changes: Mapping[str, Any], image: Path) -> None:
    then = found["model"]
    if "ckpt" not in changes and then.get("sha256") != now["sha256"]:
        raise InputError(
            f"{image}: was made with {then.get('checkpoint')} (SHA-256 {then.get('sha256')}), but the loaded "
            f"model is {now['checkpoint']} ({now['sha256']}); give the folder of those weights: --files DIR"
        )
    for part, flag in OTHER_FILES.items():
        digest, name = f"{part}_sha256", {"depth": "depth_ckpt", "controls": "control_ckpt"}.get(part, part)
        if not {name, part} & changes.keys() and digest in then and then[digest] != now.get(digest):
            raise InputError(
                f"{image}: {flag} {then.get(part)} has changed since; to use it as it is: --with {name}=FILE"
            )


def _by_option(cls: type[Request], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changes by the names of options, for those that are given by the names of flags."""
    names = {
        flag.lstrip("-").replace("-", "_"): name
        for name, each in fields_of(cls).items() for flag in each.option.flags
    }  # fmt: skip
    return {name if name in fields_of(cls) else names.get(name, name): x for name, x in changes.items()}


def _read(request: Request, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changed options; a new prompt replaces all prompts of a pass."""
    useless = {"outdir", "device", *PROMPT_OPTIONS} - {"prompt"}
    for name in changes:
        if name in useless:
            own = f"the flag of {script('rerun')} itself"
            raise InputError(f"--with {name}: use {own}, or prompt=TEXT for another prompt")
    changed = build(type(request), changes)
    read = {name: getattr(changed, name) for name in changes}
    return read | ({"prompts": (changed.prompt,) * len(request.prompts)} if "prompt" in changes else {})


def _one_of(batch: "Batch", position: int) -> "Batch":
    """Return a batch that contains only one of the images."""
    one = slice(position, position + 1)
    return replace(
        batch, prompts=batch.prompts[one], images=batch.images[one], latents=batch.latents[one],
        seeds=batch.seeds[one], offset=batch.offset + position,
    )  # fmt: skip


def _difference(before: Path, after: Path) -> int:
    """Return the largest difference of two pixels, in levels; 256 if sizes or channels differ."""
    import numpy as np
    from PIL import Image

    with Image.open(before) as a, Image.open(after) as b:
        if (a.size, a.mode) != (b.size, b.mode):
            return 256
        return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())
