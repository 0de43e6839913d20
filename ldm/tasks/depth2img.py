"""Depth-to-image: the UNet sees a depth map with x_t, and an image lends its colours.

    steps = trunc(strength * num_steps)     are run, from the encoded image with noise: image-to-image

At strength 1 they start from pure noise: all of them, but on the reference's times all but the first, as
there steps is min(steps, num_steps - 1). Without an image strength is 1.

The map is resized straight to the latents' size, as in the reference demo. Where the image must be padded
inside, the map is first resized to the image's size and padded like it.

Noise is drawn in this order: the encoder's posterior (used or not), the start noise, one draw a step.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.config import find_weights, instantiate
from ldm.data.extra_inputs import inflated
from ldm.devices import on_meta
from ldm.errors import InputError, LdmError
from ldm.imaging.colour import from_uint8
from ldm.imaging.depth import inverse_depth, known_depth, read_depth
from ldm.imaging.files import open_image, quietly
from ldm.imaging.padding import Frame
from ldm.loading import load_part
from ldm.models.latent_depth import LatentDepth2ImageDiffusion, concat_depth
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.midas import MiDaSInference, network_size
from ldm.requests import Depth2Img
from ldm.requests.depth2img import NO_DEPTH
from ldm.requests.loaded import InputArray
from ldm.requests.resolving import REFERENCE
from ldm.tasks.batch import Batch
from ldm.tasks.inputs import file_sha256, no_latents, of_array, read_image
from ldm.tasks.run import Run, Task

STRENGTH = 0.9  # of the reference demo
ALPHA_SIDE = 512  # pixels; latents of the largest images are hardly finer

logger = logging.getLogger(__name__)


def depth2img(run: Run, request: Depth2Img) -> Iterator[Batch]:
    """Make images of the depth of `request.init_img`, or of `request.depth`, of exactly that size.

    Strength 0 keeps the image (but for the autoencoder and the least noise), 1 keeps nothing of its colours.
    The batches have the map that was used as `extras["depth"]`.

    Raises: InputError where there is no map, and no network to estimate one.
    """
    given = request.init_img
    depth = _estimated(run, request) if request.depth is None else _given(request)  # (1, 1, H, W)
    frame = run.frame(*(given.values.shape[:2] if given else (request.height, request.width)))
    concat = concat_depth(_framed(depth, frame), run.latent_shape(frame)[1:])  # (1, 1, h, w) in -1..1
    if bool((concat == -1).all()):
        logger.warning("the depth map is flat: it says nothing about the image")
    posterior = None if request.strength == 1 else run.encode(given.values, frame)
    extras = {"depth": depth[0, 0].float().cpu().numpy()}
    for batch in run.each(frame, steps_of(run, request.strength)):
        x_t = batch.begin(batch.sample_posterior(posterior))
        cond = batch.cond(lambda context: run.model.hybrid(context, concat))
        yield replace(batch.done(batch.denoise(x_t, cond)), extras=extras)


def steps_of(run: Run, strength: float) -> int:
    """Return how many steps, the last ones, a strength runs.

    Raises: InputError where strength 1 runs none.
    """
    steps = run.steps_of(strength)
    if run.request.schedule == REFERENCE:
        steps = min(steps, run.sampler.num_steps - 1)
        if strength == 1 and not steps:
            raise InputError("with --steps 1 and strength 1 no step is left to run; use --steps 2 or more")
        return steps
    return len(run.sampler) if strength == 1 else steps


def chosen_strength(has_image: bool, strength: float | None) -> float:
    """Return the strength that is meant. Raises: InputError where it makes no sense."""
    if strength is None:
        return STRENGTH if has_image else 1.0
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}; expected 0 (keep the image) to 1 (keep only its depth)")
    if not has_image and strength != 1:
        raise InputError(f"strength is {strength} without an image to keep anything of; leave it out")
    return strength


def check_size(shape: tuple[int, ...], height: int, width: int) -> None:
    """Refuse a map (h, w) of another aspect ratio than the image's.

    Sides may be rounded, and the map may be of the size at which the depth network looks at the image,
    which is that of the maps that the reference demo shows.

    Raises: InputError.
    """
    if len(shape) != 2:
        raise InputError(f"the depth map is of shape {shape}; expected (height, width)")
    h, w = shape
    if (h, w) == (height, width):
        return
    rounding = max(height + width, h + w) / 2
    if abs(h * width - w * height) > rounding and (h, w) != network_size(height, width):
        raise InputError(
            f"the depth map is {w}x{h} and the image {width}x{height}, another aspect ratio; "
            "expected the map of this image, uncropped"
        )
    logger.info("the depth map is %dx%d and the image %dx%d: it is resized", w, h, width, height)


def alpha_depth(alpha: np.ndarray) -> np.ndarray:
    """Return what stands for the depth of a cut-out: its alpha (h, w) uint8 inflated, 0 to 1 (h, w).

    It is what models are trained on by `extra_input: depth` of the data, in place of an estimate. The map of
    an image with a side above 512 pixels is smaller: inflating takes a pass over it for each step inwards.

    Raises: InputError where nothing is transparent, or nothing opaque.
    """
    share = torch.from_numpy(alpha.astype(np.float32))[None, None] / 255
    if bool((share >= 0.5).all()) or bool((share < 0.5).all()):
        state = "transparent" if share[0, 0, 0, 0] < 0.5 else "opaque"
        raise InputError(f"the image is {state} throughout: its alpha has no shape to inflate")
    scale = ALPHA_SIDE / max(alpha.shape)
    if scale < 1:
        size = [max(1, round(scale * side)) for side in alpha.shape]
        share = F.interpolate(share, size, mode="area")
    return inflated(share)[0, 0].numpy()


def load_depth_network(model: LatentDiffusion, path: str | Path, config: Any = None) -> None:
    """Give a model the depth network of a file: MiDaS's own, or a depth model that holds one.

    Args:
        config: `depth_stage_config` of the model's YAML; None is the reference network.

    Raises: InputError, and CheckpointError as `ldm.loading.load_part`; the model is as it was then.
    """
    model = check_depth_model(model)
    before = model.depth_model
    if before is None:
        like = next(model.first_stage_model.parameters())
        with on_meta():
            network = MiDaSInference() if config is None else instantiate(config)
        model.depth_model = network.to(like.dtype).to_empty(device=like.device)
    try:
        load_part(model, path, "depth_model")
    except LdmError:
        model.depth_model = before
        raise


def check_depth_model(model: LatentDiffusion) -> LatentDepth2ImageDiffusion:
    """Return a depth-to-image model. Raises: InputError for another."""
    if not isinstance(model, LatentDepth2ImageDiffusion):
        raise InputError(
            f"this model is no depth-to-image model ({type(model).__name__}); expected one such as "
            "512-depth-ema.ckpt, with configs/stable-diffusion/v2-midas-inference.yaml"
        )
    return model


def _estimated(run: Run, request: Depth2Img) -> Tensor:
    """Return what the model's own network sees in the image: (1, 1, h', w')."""
    if run.model.depth_model is None:
        raise InputError(NO_DEPTH)
    return run.networks.depth(from_uint8(request.init_img.values))


def _given(request: Depth2Img) -> Tensor:
    depth = request.depth.values
    if isinstance(depth, np.ndarray):
        depth = torch.from_numpy(inverse_depth(depth, request.depth_invert))[None, None]
    return depth


def _framed(depth: Tensor, frame: Frame) -> Tensor:
    """Pad a map (1, 1, h, w) as the image is padded, at its size; as it is where nothing is padded."""
    if (frame.height, frame.width) == (frame.inner_height, frame.inner_width):
        return depth
    size = (frame.height, frame.width)
    if tuple(depth.shape[-2:]) != size:
        depth = F.interpolate(depth.float(), size, mode="bicubic", align_corners=False)
    return frame.pad(depth)


def load(request: Depth2Img) -> Depth2Img:
    """Return the request with its image and its depth map read, and its strength. Raises: InputError."""
    no_latents(request)
    _check_options(request)
    with quietly() if request.depth_from == "alpha" else nullcontext():  # there transparency is the depth
        image = None if request.init_img is None else read_image(request.init_img)
    depth = _read_depth(request)
    height = width = None
    if depth is not None:
        height, width = image.values.shape[:2] if image else _in_proportion(request, depth.values.shape)
        check_size(depth.values.shape, height, width)
    size = {} if image is not None else {"height": height, "width": width}
    strength = chosen_strength(image is not None, request.strength)
    return replace(request, init_img=image, depth=depth, strength=strength, **size)


def _check_options(request: Depth2Img) -> None:
    if any(isinstance(each, str) and not each for each in (request.init_img, request.depth)):
        raise InputError("--init-img and --depth need a file name; got an empty one")
    if request.init_img is None and request.depth is None:
        raise InputError("give an image (--init-img FILE), a depth map (--depth FILE), or both")
    is_file = isinstance(request.depth, (str, os.PathLike))
    if is_file and (request.depth_from or request.depth_ckpt):
        other = "--depth-from" if request.depth_from else "--depth-ckpt"
        raise InputError(f"--depth and {other} are both sources of the depth; give only one of them")
    if request.depth_invert and request.depth is None:
        raise InputError("--depth-invert requires --depth FILE")
    if request.depth_from == "alpha" and request.depth_ckpt:
        raise InputError("--depth-from alpha does not use a depth network; leave --depth-ckpt out")
    if request.depth_ckpt and not find_weights(request.depth_ckpt).exists():
        raise InputError(f"--depth-ckpt {request.depth_ckpt}: there is no such file")
    if request.init_img is not None and (request.height or request.width):
        raise InputError("--H and --W are for runs without --init-img, whose size the result has otherwise")


def _read_depth(request: Depth2Img) -> InputArray | None:
    """Return the depth map (h, w); None if the depth network should estimate it."""
    given = request.depth
    if isinstance(given, InputArray):
        known_depth(given.values, request.depth_invert)
        return given
    if given is not None and not isinstance(given, (str, os.PathLike)):
        values = np.asarray(given, np.float32)
        known_depth(values, request.depth_invert)  # refuses maps without depth
        return of_array(values)
    if given:
        values = read_depth(Path(given))
        try:
            known_depth(values, request.depth_invert)
        except InputError as error:
            raise InputError(f"--depth {given}: {error}") from error
        return InputArray(values, file_sha256(given), os.fspath(given))
    if request.depth_from == "alpha":
        try:
            alpha = np.asarray(open_image(request.init_img, alpha=True))[..., 3]
            return of_array(alpha_depth(alpha))
        except InputError as error:
            raise InputError(f"--depth-from alpha: {error}") from error
    return None


def _in_proportion(request: Depth2Img, shape: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of the result without --init-img; one given side scales the other."""
    h, w = shape
    height = request.height or (max(1, round(h * request.width / w)) if request.width else h)
    return height, request.width or max(1, round(w * height / h))


TASK = Task(depth2img, ("hybrid",), check_depth_model, load)
