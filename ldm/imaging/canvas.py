"""The canvas of a picture that grows at its sides, and the windows in which the new part is painted.

A model paints well at about the size that it was trained at, and what it adds fits what it sees. So a canvas
that is no larger than a window, half of it at least known along each axis, is painted at once. Else strip
after strip, left, right, up, down, each no wider than half a window, the rest of which shows what is known:

    known ......|..... strip     along a side that is longer than a window, strips are painted in several
    [   a window     ]           windows that overlap by a quarter of one

What was painted is known to the windows that follow, so that corners are seen from both sides.

No true edge runs along the border of a picture, so what was painted is joined to it as in seamless cloning
(Perez et al., "Poisson Image Editing", SIGGRAPH 2003): the difference across the border, d, is taken away
beside it and less and less farther in, and all detail stays,

    joined = painted + spread(d)
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
from ldm.imaging.spread import spread

LEAST_WINDOW = 16  # pixels a side
REACH = 8.0  # pixels, a latent of SD, from where on what joins the new part to the known falls
OVERLAP = 4  # windows along a side share one part in so many with what was painted before


class Margins(NamedTuple):
    """How many pixels a picture grows at each side."""

    left: int = 0
    right: int = 0
    up: int = 0
    down: int = 0

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the picture grown.

        Raises: InputError where nothing grows, something shrinks, or it would be too large.
        """
        if min(self) < 0 or not any(self):
            amounts = ", ".join(f"{side} {amount}" for side, amount in self._asdict().items())
            raise InputError(f"outpainting by {amounts}; expected pixels to add, 0 or more, not all 0")
        tall, wide = self.up + height + self.down, self.left + width + self.right
        if max(tall, wide) > MAX_SIDE or tall * wide > MAX_PIXELS:
            raise InputError(
                f"outpainting {width}x{height} to {wide}x{tall}: at most {MAX_SIDE} a side and "
                f"{MAX_PIXELS // 10**6} megapixels are made; add less"
            )
        return tall, wide

    def inner(self, height: int, width: int) -> Box:
        """Return where a picture of height x width lies on its canvas."""
        return Box(self.up, self.left, self.up + height, self.left + width)


class Window(NamedTuple):
    """A part of the canvas that the model sees at once."""

    box: Box
    new: np.ndarray  # (h, w) bool within the box: what is painted now; all else in it is known


def windows(height: int, width: int, margins: Margins, side: int) -> Iterator[Window]:
    """Yield the windows, in order, that grow a picture of height x width; none is larger than side x side.

    Every new pixel is painted in one of them.
    """
    known = np.zeros(margins.canvas(height, width), bool)
    known[margins.inner(height, width).part] = True
    for box in boxes(height, width, margins, side):
        yield Window(box, ~known[box.part])
        known[box.part] = True


def boxes(height: int, width: int, margins: Margins, side: int) -> list[Box]:
    """Return where the windows lie, in order.

    Raises: InputError for margins or a window that cannot be.
    """
    tall, wide = margins.canvas(height, width)
    if side < LEAST_WINDOW:
        raise InputError(f"a window of {side} pixels; expected {LEAST_WINDOW} or more")
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


def joined(painted: Tensor, image: Tensor, new: Tensor) -> Tensor:
    """Return pictures (b, 3, h, w) that are `image` where that is known, and go on from it by `painted`.

    Args:
        painted: (b, 3, h, w).
        image: (1 or b, 3, h, w).
        new: (h, w) bool, what is not known.
    """
    known = (~new)[None, None].to(image)
    beside = _around(torch.where(new, 0.0, image)) / _around(known).clamp(min=1)  # mean of known neighbours
    edge = new & (_around(known)[0, 0] > 0)
    step = torch.where(edge, beside - painted, 0.0)
    return torch.where(new, painted + spread(step, edge[None, None], REACH), image)


def _around(x: Tensor) -> Tensor:
    """Return the sum of each pixel's four neighbours."""
    x = F.pad(x, (1, 1, 1, 1))
    return x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]


def _parts(amount: int, most: int) -> list[int]:
    """Return whole numbers, as few and as equal as can be, none above `most`, that add up to `amount`."""
    count = math.ceil(amount / most)
    return [amount * (i + 1) // count - amount * i // count for i in range(count)]


def _grown(box: Box, name: str, by: int) -> Box:
    top, left, bottom, right = box
    return {
        "left": Box(top, left - by, bottom, right),
        "right": Box(top, left, bottom, right + by),
        "up": Box(top - by, left, bottom, right),
        "down": Box(top, left, bottom + by, right),
    }[name]


def _seen(grown: Box, name: str, side: int) -> Box:
    """Return the part of `grown` with the new strip and as much beside it as a window holds."""
    top, left, bottom, right = grown
    return {
        "left": Box(top, left, bottom, min(left + side, right)),
        "right": Box(top, max(right - side, left), bottom, right),
        "up": Box(top, left, min(top + side, bottom), right),
        "down": Box(max(bottom - side, top), left, bottom, right),
    }[name]


def _along(box: Box, name: str, side: int) -> list[Box]:
    """Cut a box along a side of the picture into overlapping windows, all of one length."""
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
