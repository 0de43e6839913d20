"""The controls of a request: their images, and the ControlNets that they need.

A ControlNet comes from --control-ckpt: one file for each --control in order, one file for all of them, or a
folder, in which the names of the files tell their kinds. Without it there are those of the demo model, and
that of a checkpoint which contains one (control_sd15_canny.pth).
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.annotators import find, name_of
from ldm.config import find_config, find_weights
from ldm.errors import ConfigError, InputError, LdmError, WrongModelError
from ldm.requests import Request, fields_of
from ldm.requests.control_unit import INPAINT, MAP, ControlUnit

if TYPE_CHECKING:
    from ldm.loading.controls import LoadedControl
    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.tasks.steering import Steer

log = logging.getLogger(__name__)

ControlFiles = list[list[Path] | None]
DEMO = "configs/demo/emoji_control_{}.safetensors"
NAMES = {
    "hed": ("hed", "softedge"), "softedge": ("softedge", "hed"), "normal": ("normal", "normalbae"),
    "sketch": ("scribble",), "fake_scribble": ("scribble",), "threshold": ("scribble",),
    "openpose": ("openpose", "pose"), "blazepose": ("openpose", "pose"), "seg": ("seg", "segmentation"),
    "lsd": ("lsd", "mlsd", "hough"), "mlsd": ("mlsd", "hough"), "blur": ("blur", "tile"),
}  # fmt: skip
"""annotator -> words in the names of files of ControlNets for its maps, where it is not its own name"""
SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt", ".bin")


@dataclass(frozen=True, eq=False)
class OpenedControl:
    """A ControlNet that is loaded, and the digest of its file, which images record."""

    loaded: "LoadedControl"
    sha256: Callable[[], str | None] = lambda: None


def control_files(request: Request) -> ControlFiles:
    """Return for each control the files that its ControlNet may be in; None for the checkpoint's own.

    Raises: InputError if there are not as many files as controls, or a folder holds none of a kind.
    """
    units = getattr(request, "controls", ())
    if not units:
        return []
    given = request.control_ckpt
    if not given:
        return [None if request.ckpt is not None else [_demo_file(unit)] for unit in units]
    if len(given) not in (1, len(units)):
        raise InputError(
            f"{len(given)} --control-ckpt for {len(units)} --control: expected one for each, in order, one "
            "for all, or a folder"
        )
    files = given if len(given) == len(units) else given * len(units)
    return [_candidates(find_weights(file), unit) for file, unit in zip(files, units, strict=True)]


def _words(unit: ControlUnit) -> tuple[str, ...]:
    kind = unit.kind if unit.kind == INPAINT else name_of(unit.kind, (MAP, INPAINT))
    return NAMES.get(kind, (kind,))


def _demo_file(unit: ControlUnit) -> Path:
    if unit.kind == MAP:
        raise InputError(
            "--control map does not say which ControlNet of the demo model to use; give --control-ckpt "
            f"{DEMO.format('canny')} or {DEMO.format('scribble')}"
        )
    for word in _words(unit):
        try:
            return find_config(DEMO.format(word))
        except ConfigError:
            continue
    raise InputError(f"the demo model has no ControlNet for {unit.kind}; give --control-ckpt FILE")


def _candidates(path: Path, unit: ControlUnit) -> list[Path]:
    """Return a file or a diffusers folder as it is, or the files for the kind in a folder of them."""
    if not path.is_dir() or (path / "config.json").is_file():
        return [path]
    if unit.kind == MAP:
        raise InputError(
            f"--control map names no kind to look for in the folder {path}; give --control-ckpt FILE"
        )
    word = re.compile(rf"(^|[^a-z])({'|'.join(_words(unit))})($|[^a-z])")
    there = [
        each for each in sorted(path.iterdir())
        if each.suffix in SUFFIXES or (each / "config.json").is_file()
    ]  # fmt: skip
    found = [each for each in there if word.search((each.name if each.is_dir() else each.stem).lower())]
    if not found:
        names = ", ".join(each.name for each in there[:8]) or "no weights"
        raise InputError(f"--control-ckpt {path}: no file is named for {unit.kind}; the folder holds {names}")
    return found


def setting_files(unit: Mapping[str, Any]) -> list[str]:
    """Return which settings of a recorded control are files."""
    settings = unit.get("settings") or {}
    options = fields_of(find(unit["kind"])) if settings else {}
    return [name for name in settings if name in options and options[name].option.is_file]


def moved(unit: Mapping[str, Any], found: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a recorded control with each of its files replaced by what `found` returns of it."""
    settings = dict(unit.get("settings") or {})
    settings |= {name: found(settings[name]) for name in setting_files(unit)}
    file = {"file": found(unit["file"])} if "file" in unit else {}
    return {**unit, **file} | ({"settings": settings} if settings else {})


def check_families(request: Request) -> None:
    """Compare by their headers the ControlNets of a request with its model; torch is not needed.

    Raises:
        WrongModelError: a file is no ControlNet, or none of its candidates is for the model's family.
        CheckpointError: it cannot be read.
    """
    from ldm.checkpoint import identify

    base = None
    if request.ckpt is not None and getattr(request, "controls", ()):
        with contextlib.suppress(LdmError):         # opening it says what is wrong
            base = identify(request.ckpt)
    for candidates in control_files(request):
        found = [identify(path) for path in candidates or ()]
        wrong = [each for each in found if each.kind != "controlnet"]
        if found and len(wrong) == len(found):
            raise WrongModelError(f"{wrong[0].path} is {wrong[0].sentence()}; expected a ControlNet")
        widths = {each.context_width for each in found if each.kind == "controlnet"}
        if base is None or base.context_width is None or not widths - {None}:
            continue
        if not widths & {base.context_width, None}:
            theirs = next(each for each in found if each.kind == "controlnet")
            raise WrongModelError(
                f"{theirs.path} is {theirs.sentence()}, and {base.path} is {base.sentence()}: the ControlNet "
                "does not fit; give one that was trained for this family of models"
            )


def check_controls(files: ControlFiles, model: "LatentDiffusion", base: str) -> None:
    """Compare ControlNets with a model before its weights are read.

    Raises: as `ldm.loading.controls.load_control`.
    """
    for candidates in files:
        _own(model, base) if candidates is None else _fitting(candidates, model, base)


class ControlNets:
    """Loads ControlNets for a model, and keeps them for the next request with the same model."""

    def __init__(self) -> None:
        self._kept: dict[tuple, OpenedControl] = {}     # by file, as it was then

    def open(
        self, files: ControlFiles, model: "LatentDiffusion", base: str, allow_nonfinite: bool
    ) -> tuple[OpenedControl, ...]:
        """Return the ControlNets of a request, loaded.

        Raises: as `ldm.loading.controls.load_control`.
        """
        paths = [
            each and (each[0] if len(each) == 1 else _fitting(each, model, base)) for each in files
        ]  # fmt: skip
        keys = [path and _state(path) for path in paths]
        self._kept = {key: opened for key, opened in self._kept.items() if key in keys}
        return tuple(
            self._opened(path, key, model, base, allow_nonfinite)
            for path, key in zip(paths, keys, strict=True)
        )

    def _opened(
        self, path: Path | None, key: tuple, model: "LatentDiffusion", base: str, allow_nonfinite: bool
    ) -> OpenedControl:
        from ldm.files.digest import sha256_in_background
        from ldm.loading.controls import load_control

        if path is None:
            return OpenedControl(_own(model, base))
        if key not in self._kept:
            loaded = load_control(path, model, base, allow_nonfinite=allow_nonfinite)
            log.info("ControlNet: %s", path.name)
            self._kept[key] = OpenedControl(loaded, sha256_in_background(path))
        return self._kept[key]


def _state(path: Path) -> tuple:
    """Return what changes when a file, or one in a folder, is written again."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    about = [file.stat() for file in files if file.exists()]
    return path, *((each.st_size, each.st_mtime_ns) for each in about)


def _own(model: "LatentDiffusion", base: str) -> "LoadedControl":
    """Return the ControlNet of a model that has one."""
    from ldm.loading.controls import LoadedControl

    network = getattr(model, "control_model", None)
    if network is None:
        raise InputError(f"{base} contains no ControlNet; give one with --control-ckpt FILE")
    return LoadedControl(network, is_pooled=model.global_average_pooling)


def _fitting(candidates: list[Path], model: "LatentDiffusion", base: str) -> Path:
    """Return the one file whose ControlNet fits a model."""
    from ldm.loading.controls import check_control

    errors, found = [], []
    for path in candidates:
        try:
            check_control(path, model, base)
            found.append(path)
        except WrongModelError as error:
            errors.append(error)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"--control-ckpt: {names} all fit; give one of them")
    if not found:
        raise errors[0]
    return found[0]


def steers(request: Request, controls: Iterable[OpenedControl]) -> "tuple[Steer, ...]":
    """Return the controls of a loaded request with their ControlNets."""
    from ldm.tasks.steering import Steer, image_of

    mode = "control" if getattr(request, "guess", False) else getattr(request, "control_mode", "balanced")
    found = []
    for unit, control in zip(getattr(request, "controls", ()), controls, strict=True):
        loaded = control.loaded
        fit = getattr(request, "fit", None) if unit.image is None else None
        steer = Steer(
            unit, loaded.network, image_of(unit, request), loaded.is_pooled, loaded.is_bgr, mode,
            "crop" if fit in (None, "exact") else fit,
        )  # fmt: skip
        found.append(steer)
    return tuple(found)
