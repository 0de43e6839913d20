"""Steer sampling by ControlNets: make the maps that a request asks for, of the size that the networks see.

    whole image  ->  annotator  ->  map (H, W, 3)  ->  the part that is sampled  ->  padded: the hint

The annotator sees the image at the size of the result, or at `control_resolution`. In a second pass, a
cropped region or a window of outpainting the map is made of the whole, and the part is cut out of it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.annotators import name_of, prepared
from ldm.annotators.base import Annotator
from ldm.diffusion.cond import Control, control_scales
from ldm.errors import InputError
from ldm.imaging import masks
from ldm.imaging.fit import Fit
from ldm.imaging.masks import Box
from ldm.imaging.padding import Frame
from ldm.imaging.paste import opaque
from ldm.imaging.profiles import to_srgb
from ldm.models.controlnet import HINT_FACTOR
from ldm.requests import Request, fields_of, names_of
from ldm.requests.control_unit import INPAINT, MAP, ControlUnit
from ldm.requests.groups import Controls
from ldm.requests.loaded import InputArray
from ldm.samplers.base import Sampler
from ldm.tasks.inputs import read_image

R = TypeVar("R", bound=Request)

UNEQUAL = 0.02  # difference of proportions from which cropping is mentioned
SMALLEST = 8  # pixels of the shorter side of an image that a map is made of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """The part of the result that is sampled: all of it, or a box.

    Args:
        height, width: of the result in pixels.
    """

    height: int
    width: int
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class Steer:
    """A control of a request: what it says, its ControlNet, and the image that its map is made of.

    Args:
        image: (h, w, 3) uint8, of which the unit's annotator makes a map, or without one the map itself, or
            (h, w, 4) whose transparent pixels are to be painted.
        is_pooled, is_bgr: see `ldm.loading.controls.LoadedControl`.
        mode: "balanced"; "prompt": shallow residuals are weaker; "control": guess mode.
        fit: how the image is fitted to another size than its own, see `ldm.imaging.fit`.
    """

    unit: ControlUnit
    network: nn.Module
    image: np.ndarray
    is_pooled: bool = False
    is_bgr: bool = False
    mode: str = "balanced"
    fit: str = "crop"

    def map(self, height: int, width: int) -> np.ndarray:
        """Return the map (height, width, 3 or 4) uint8."""
        image, (own_height, own_width) = self.image, self.image.shape[:2]
        annotator: Annotator | None = self.unit.annotator
        if (own_height, own_width) != (height, width):
            fit = Fit(self.fit, (height, width))
            image = fit.of(image, 1, nearest=annotator is not None and annotator.READS_MAPS)
            if annotator is not None:
                annotator = annotator.fitted(lambda map: fit.of(map, 1), (own_height, own_width))
            if self.fit == "crop" and abs(own_width * height / (own_height * width) - 1) > UNEQUAL:
                what = "the image of --control %s is cropped from %dx%d to the proportions of %dx%d"
                logger.info(what, self.unit.kind, own_width, own_height, width, height)
        found = image
        if annotator is not None:
            found = annotator(image)
            annotator.release()
        if found.min() == found.max():
            logger.warning("the map of --control %s is one colour: nothing to follow", self.unit.kind)
        return found

    def interval(self, times: Sequence[float], num_timesteps: int) -> tuple[float, float] | None:
        """Return the training times t / (N - 1) of the unit's part of the steps; None if it has no step.

        Step i of n acts if its whole length i / n to (i + 1) / n lies in the part, as in diffusers.
        """
        unit, n = self.unit, len(times)
        acting = [i for i in range(n) if i / n >= unit.start and (i + 1) / n <= unit.end]
        if not acting:
            return None
        first, last = acting[0], acting[-1]
        high = 1.0 if not first else (times[first - 1] + times[first]) / 2 / (num_timesteps - 1)
        low = 0.0 if last == n - 1 else (times[last] + times[last + 1]) / 2 / (num_timesteps - 1)
        return max(low, 0.0), min(high, 1.0)


def read_controls(request: R) -> R:
    """Return the request with the images of its controls read.

    Raises: InputError for an image that is missing, too small or cannot be read.
    """
    units = getattr(request, "controls", ())
    if not units:
        for name, each in fields_of(type(request)).items():
            if name in names_of(Controls) and getattr(request, name) != each.default:
                raise InputError(f"{each.flag} requires --control KIND:FILE")
        return request
    if request.guess and request.control_mode == "prompt":
        raise InputError("--guess is --control-mode control; leave --control-mode prompt out")
    return replace(request, controls=tuple(_with_image(unit, request) for unit in units))


def _with_image(unit: ControlUnit, request: Request) -> ControlUnit:
    """Return a control with its image and its annotator, which are checked. Raises: InputError."""
    own = getattr(request, "init_img", None)
    try:
        annotator = annotator_of(unit, request)
        if unit.kind == INPAINT and unit.image is None and not hasattr(request, "mask"):
            raise InputError("give a file, inpaint:FILE, whose transparent part is to be painted")
        if unit.image is None and not isinstance(own, InputArray):
            raise InputError(f"give a file: --control {unit.kind}:FILE")
        image = None if unit.image is None else read_image(unit.image, alpha=unit.kind == INPAINT)
        values = (own if image is None else image).values
        name = "the image" if image is None or not image.file else image.file
        height, width, channels = values.shape
        if image is not None and unit.kind == INPAINT and channels == 3:
            raise InputError(f"{name} has no transparent part to paint")
        if min(height, width) < SMALLEST:
            raise InputError(f"{name} is {width}x{height}; expected at least {SMALLEST} pixels a side")
        if annotator is not None:
            annotator = annotator.fitted(lambda map: map, (height, width))
            if annotator.READS_MAPS:
                annotator(np.ascontiguousarray(values[..., :3]))
    except InputError as error:
        is_odd = isinstance(unit.image, str) and any(sign in unit.image for sign in "@[")
        hint = f"; the order is {unit.kind}:FILE@WEIGHT[START-END]" if is_odd else ""
        raise InputError(f"--control {unit.kind[:60]}: {error}{hint}") from error
    return replace(unit, image=image, annotator=annotator)


def annotator_of(unit: ControlUnit, request: Request) -> Annotator | None:
    """Return what makes the map of a control; None where the image is the map. Raises: InputError."""
    if unit.kind in (MAP, INPAINT):
        return None
    resolution = request.control_resolution or 0
    kind = name_of(unit.kind, (MAP, INPAINT))
    return prepared(kind, unit.settings, resolution, request.annotator_weights, request.device)


def image_of(unit: ControlUnit, request: Request) -> np.ndarray:
    """Return what a map is made of, (h, w, 3) uint8; INPAINT has a fourth channel, 255 where it stays."""
    if unit.image is not None and unit.kind == INPAINT:
        return to_srgb(unit.image.values, unit.image.about)
    if unit.image is not None:
        return unit.image.values
    own = request.init_img
    image = opaque(to_srgb(own.values, own.about))
    if unit.kind != INPAINT:
        return image
    mask = masks.prepared(request.mask.values, invert=request.invert_mask, grow=request.mask_grow)
    stays = np.where(masks.binarize(mask), 0, 255).astype(np.uint8)
    return np.dstack([image, stays])


class Steering:
    """The controls of a run, with their maps.

    Args:
        factor: pixels a latent of the model.
    """

    def __init__(self, steers: Sequence[Steer], factor: int, device: torch.device) -> None:
        self.steers = steers
        self.factor = factor
        self.device = device
        self._maps: dict[tuple[int, int, int], np.ndarray] = {}
        self._hints: dict[tuple, Tensor] = {}
        self._said: set[int] = set()

    def controls(
        self, count: int, frame: Frame, view: View, sampler: Sampler, start: int
    ) -> tuple[Control, ...]:
        """Return the controls of `count` samples of a part of the result, from step `start` on."""
        found = []
        times = [float(t) for t in sampler.timesteps[start:]]
        for i, steer in enumerate(self.steers):
            interval = steer.interval(times, sampler.schedule.num_timesteps) if times else None
            if interval is None:
                self._say_idle(i, steer, len(times))
                continue
            if not steer.unit.weight:
                continue
            hint = self._hint(i, frame, view).expand(count, -1, -1, -1)
            scale: float | tuple[float, ...] = steer.unit.weight
            if steer.mode == "prompt":
                scale = control_scales(steer.unit.weight, True, len(steer.network.zero_convs) + 1)
            found.append(
                Control(steer.network, hint, scale, interval, steer.mode == "control", steer.is_pooled)
            )
        return tuple(found)

    def maps(self) -> list[np.ndarray]:
        """Return the maps that were made, (h, w, 3 or 4) uint8, in the order of the controls."""
        return [self._maps[key] for key in sorted(self._maps)]

    def _hint(self, i: int, frame: Frame, view: View) -> Tensor:
        """Return the hint (1, 3, H, W) in [0, 1] of control i."""
        key = i, frame, view
        if key not in self._hints:
            whole = i, view.height, view.width
            if whole not in self._maps:
                self._maps[whole] = self.steers[i].map(view.height, view.width)
            values = self._maps[whole] if view.box is None else self._maps[whole][view.box.part]
            if self.steers[i].is_bgr:
                values = values[..., [2, 1, 0]]
            hint = torch.from_numpy(np.array(values)).permute(2, 0, 1)[None].float() / 255
            if hint.shape[1] == 4:
                hint = torch.where(hint[:, 3:] < 0.5, -1.0, hint[:, :3])
            if hint.shape[-2:] != (frame.height, frame.width):
                hint = F.interpolate(hint, size=(frame.height, frame.width), mode="bilinear", antialias=True)
            hint = F.interpolate(frame.pad(hint), scale_factor=HINT_FACTOR / self.factor)
            self._hints[key] = hint.to(self.device)
        return self._hints[key]

    def _say_idle(self, i: int, steer: Steer, steps: int) -> None:
        if i not in self._said:
            unit = steer.unit
            logger.warning(
                "--control %s acts in none of the %d steps: its interval %g-%g holds no whole step",
                unit.kind, steps, unit.start, unit.end,
            )  # fmt: skip
        self._said.add(i)
