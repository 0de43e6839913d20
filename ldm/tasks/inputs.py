"""Read the input files of a request: its images, and what --latents begins with.

`read_inputs` reads both, and is what a `Task` has unless it has a `load` of its own: for masks and other
files, and to refuse options that contradict each other or a file before the model is loaded.
"""

import hashlib
import os
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from ldm.errors import InputError
from ldm.files.digest import fresh_sha256
from ldm.imaging.files import converted, open_image
from ldm.requests import Request, fields_of
from ldm.requests.loaded import InputArray
from ldm.tasks.latents import read_latents
from ldm.wording import script

R = TypeVar("R", bound=Request)


def read_inputs(request: R) -> R:
    """Return the request with its images read, and its noise to start from if --latents gives any.

    Raises: InputError for a file that cannot be read, or an image that is missing.
    """
    return read_images(read_noise(request))


def read_images(request: R, alpha: bool = False) -> R:
    """Return the request with every option that is an image read, see `read_image`.

    Raises: InputError, also where an image is missing.
    """
    found: dict[str, Any] = {}
    for name, each in fields_of(type(request)).items():
        if not each.option.is_image:
            continue
        value = getattr(request, name)
        if value is None or (isinstance(value, (str, tuple)) and not value):
            what = each.option.help.partition(";")[0]
            raise InputError(f"{each.flag} is missing: give {what}")
        is_many = isinstance(value, tuple)
        found[name] = tuple(read_image(one, alpha) for one in value) if is_many else read_image(value, alpha)
    return replace(request, **found)


def read_noise(request: R, finished: bool = False) -> R:
    """Return the request with --latents read: noise, or with `finished` also those of a finished image."""
    if request.latents is None or isinstance(request.latents, InputArray):
        return request
    if isinstance(request.latents, torch.Tensor):
        values = request.latents.float().reshape(-1, *request.latents.shape[-3:])
        return replace(request, latents=InputArray(values, of_array(values.cpu().numpy()).sha256))
    file = read_latents(request.latents)
    if file.kind == "stopped":
        raise InputError(
            f"{file.path} is an interrupted run, not noise: resume it on its own, with "
            f"{script(file.record.get('task'))} --latents {file.path}"
        )
    if file.kind == "final" and not finished:
        raise InputError(
            f"{file.path} contains the latents of a finished image, but this task starts from noise; use "
            f"{script('img2img')}"
        )
    size = (file.record["height"], file.record["width"]) if "height" in file.record else None
    loaded = InputArray(file.latents, file_sha256(file.path), os.fspath(request.latents), size)
    return replace(request, latents=loaded)


def no_latents(request: Request) -> None:
    """Refuse --latents that do not resume a run."""
    if request.latents is not None:
        raise InputError(
            f"--latents {request.latents} is not an interrupted run, and this task can only resume one; give "
            "an image with --init-img"
        )


def read_image(value: Any, alpha: bool = False) -> InputArray:
    """Return an upright image (h, w, 3) uint8 in sRGB.

    Args:
        value: a path, a PIL image, or an array (h, w, 3) or, with `alpha`, (h, w, 4) uint8.
        alpha: its bytes are to be kept: (h, w, 4) if it has transparency, and in the colours of its profile.

    Raises: InputError.
    """
    if isinstance(value, InputArray):
        return value
    if isinstance(value, (str, os.PathLike)):
        image = open_image(value, alpha=None if alpha else False, own_colours=alpha)
        profile = image.info.get("icc_profile")
        return InputArray(np.asarray(image), file_sha256(value), os.fspath(value), profile)
    if hasattr(value, "has_transparency_data"):  # a PIL image
        image = converted(value, "the image", alpha=None if alpha else False, own_colours=alpha)
        return replace(of_array(np.asarray(image)), about=image.info.get("icc_profile"))
    channels = (3, 4) if alpha else (3,)
    if getattr(value, "dtype", None) != np.uint8 or value.ndim != 3 or value.shape[2] not in channels:
        expected = " or ".join(map(str, channels))
        got = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}"
        raise InputError(f"got an image of {got}; expected uint8 (height, width, {expected})")
    return of_array(value)


def of_array(values: np.ndarray) -> InputArray:
    """Return values from memory as an input."""
    return InputArray(values, hashlib.sha256(values.tobytes()).hexdigest())


def file_sha256(path: Any) -> str:
    """Return the SHA-256 of a file as it is now."""
    return fresh_sha256(os.path.expanduser(path))
