"""The canvas of an image that is extended at its sides, and the windows in which the new part is painted.

A model works best at about the size that it was trained at, and it needs to see part of the image to continue
it. A canvas that is no larger than one window, and of which at least half is known along each axis, is
painted at once. Otherwise the new part is painted in strips: left, right, up, down, each at most half a
window wide; the rest of the window shows known pixels:

    known ......|..... strip     along a side that is longer than a window, a strip is painted in several
    [   a window     ]           windows that overlap by a quarter

Painted pixels are known to the windows that follow, so corners see both of their neighbours.

The border of an image is not an edge in the scene, so the new part is joined to it as in seamless cloning
(Perez et al., "Poisson Image Editing", SIGGRAPH 2003): the difference across the border, d, is added next to
it and decays with the distance, while all detail stays,

    joined = painted + pull_push(d)

Often the outermost pixels of an image are not what lies inside: scanning, resizing and compression leave a
darker or brighter rim, which the model would continue. So it sees the image `without_rim`: how far the
outermost RIM rows of pixels depart, along the side, from a line and from a parabola through the next FIT rows
is taken off them, if it is clearly more than those rows depart from the line.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging.files import MAX_PIXELS, MAX_SIDE
from ldm.imaging.masks import Box
from ldm.imaging.pull_push import pull_push

LEAST_WINDOW = 16  # pixels per side
REACH = 8.0  # pixels, one latent of SD; beyond this distance the correction at the border decays
RIM, FIT = 3, 8  # pixels: the depth of a rim, and of what it is compared with
ALONG = 33  # pixels along a side whose median counts
LEAST_RIM = 5 / 127.5  # in -1..1; less is no rim
OVERLAP = 4  # windows along a side overlap by one part in this many


class Margins(NamedTuple):
    """How many pixels are added at each side of an image."""

    left: int = 0
    right: int = 0
    up: int = 0
    down: int = 0

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the extended image.

        Raises:
            InputError: no pixels are added, an amount is negative, or the canvas would be too large.
        """
        if min(self) < 0 or not any(self):
            amounts = ", ".join(f"{side} {amount}" for side, amount in self._asdict().items())
            raise InputError(f"outpainting by {amounts}; expected pixels to add, 0 or more, not all 0")
        tall, wide = self.up + height + self.down, self.left + width + self.right
        if max(tall, wide) > MAX_SIDE or tall * wide > MAX_PIXELS:
            raise InputError(
                f"outpainting {width}x{height} to {wide}x{tall}: at most {MAX_SIDE} pixels per side and "
                f"{MAX_PIXELS // 10**6} megapixels are possible; add fewer pixels"
            )
        return tall, wide

    def inner(self, height: int, width: int) -> Box:
        """Return where an image of height x width lies on its canvas."""
        return Box(self.up, self.left, self.up + height, self.left + width)


class Window(NamedTuple):
    """A part of the canvas that the model paints at once."""

    box: Box
    new: np.ndarray  # (h, w) bool within the box: True to paint; all other pixels are known


def windows(height: int, width: int, margins: Margins, side: int) -> Iterator[Window]:
    """Yield the windows that extend an image of height x width, in order, each at most side x side.

    Every new pixel is painted in exactly one of them.
    """
    known = np.zeros(margins.canvas(height, width), bool)
    known[margins.inner(height, width).part] = True
    for box in boxes(height, width, margins, side):
        yield Window(box, ~known[box.part])
        known[box.part] = True


def boxes(height: int, width: int, margins: Margins, side: int) -> list[Box]:
    """Return the positions of the windows, in order.

    Raises: InputError for impossible margins or too small a window.
    """
    tall, wide = margins.canvas(height, width)
    if side < LEAST_WINDOW:
        raise InputError(f"got a window of {side} pixels; expected {LEAST_WINDOW} or more")
    most = side // 2
    fits = max(tall, wide) <= side
    if fits and margins.left + margins.right <= most and margins.up + margins.down <= most:
        return [Box(0, 0, tall, wide)]
    known, found = margins.inner(height, width), []
    for name, amount in margins._asdict().items():
        for strip in _parts(amount, most):
            box = _grown(known, name, strip)
            found += _along(_seen(box, name, side), name, side)
            known = box
    return found


def without_rim(images: Tensor, margins: Margins) -> Tensor:
    """Return images (n, c, h, w) in -1..1 with the rim taken off the sides that are extended."""
    if margins.left:
        images = _rimless(images.mT).mT
    if margins.right:
        images = _rimless(images.flip(-1).mT).mT.flip(-1)
    if margins.up:
        images = _rimless(images)
    if margins.down:
        images = _rimless(images.flip(-2)).flip(-2)
    return images.clamp(-1, 1)


def _rimless(images: Tensor) -> Tensor:
    """Return images (n, c, h, w) with the rim taken off their first rows."""
    depth = RIM + FIT
    if images.shape[-2] <= depth:
        return images
    padded = F.pad(images[..., :depth, :].flatten(0, 1), (ALONG // 2, ALONG // 2), mode="replicate")
    medians = padded.unfold(-1, ALONG, 1).median(-1).values.view_as(images[..., :depth, :])
    powers = torch.arange(depth, dtype=torch.float32)[:, None] ** torch.arange(3)  # (depth, 3)
    off = []
    for degree in (1, 2):
        basis = powers[:, : degree + 1].to(images)
        off.append(medians - basis @ (torch.linalg.pinv(basis[RIM:]) @ medians[..., RIM:, :]))
    scatter = off[0][..., RIM:, :].abs().amax(-2, keepdim=True)
    line, curve = (each[..., :RIM, :] for each in off)  # (n, c, RIM, w)
    least = (2 * scatter).clamp(min=LEAST_RIM)
    is_rim = (torch.minimum(line.abs(), curve.abs()) > least) & (line * curve > 0)
    rim = torch.where(is_rim, torch.where(line.abs() < curve.abs(), line, curve), 0.0)
    return torch.cat([images[..., :RIM, :] - rim, images[..., RIM:, :]], dim=-2)


def joined(painted: Tensor, image: Tensor, new: Tensor) -> Tensor:
    """Return images (b, 3, h, w): `image` where it is known, continued by `painted` without a visible border.

    Args:
        painted: (b, 3, h, w).
        image: (1 or b, 3, h, w).
        new: (h, w) bool, True where `image` is not known.
    """
    known = (~new)[None, None].to(image)
    means = _around(torch.where(new, 0.0, image)) / _around(known).clamp(min=1)  # of known neighbours
    edge = new & (_around(known)[0, 0] > 0)
    step = torch.where(edge, means - painted, 0.0)
    return torch.where(new, painted + pull_push(step, edge[None, None], REACH), image)


def _around(x: Tensor) -> Tensor:
    """Return the sum of each pixel's four neighbours."""
    x = F.pad(x, (1, 1, 1, 1))
    return x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]


def _parts(amount: int, most: int) -> list[int]:
    """Split `amount` into as few and as equal whole numbers as possible, each at most `most`."""
    count = math.ceil(amount / most)
    return [amount * (i + 1) // count - amount * i // count for i in range(count)]


def _grown(box: Box, name: str, by: int) -> Box:
    added = Margins(**{name: by})
    top, left, bottom, right = box
    return Box(top - added.up, left - added.left, bottom + added.down, right + added.right)


def _seen(grown: Box, name: str, side: int) -> Box:
    """Return the part of `grown` with the new strip and as many known pixels as fit into a window."""
    top, left, bottom, right = grown
    return {
        "left": Box(top, left, bottom, min(left + side, right)),
        "right": Box(top, max(right - side, left), bottom, right),
        "up": Box(top, left, min(top + side, bottom), right),
        "down": Box(max(bottom - side, top), left, bottom, right),
    }[name]


def _along(box: Box, name: str, side: int) -> list[Box]:
    """Cut a box along a side of the image into overlapping windows of equal length."""
    top, left, bottom, right = box
    if name in ("left", "right"):
        return [Box(start, left, stop, right) for start, stop in _tiles(top, bottom, side)]
    return [Box(top, start, bottom, stop) for start, stop in _tiles(left, right, side)]


def _tiles(start: int, stop: int, side: int) -> list[tuple[int, int]]:
    length, step = stop - start, side - side // OVERLAP
    if length <= side:
        return [(start, stop)]
    count = math.ceil((length - side) / step) + 1
    starts = [start + (length - side) * i // (count - 1) for i in range(count)]
    return [(first, first + side) for first in starts]
