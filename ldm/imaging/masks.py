"""Inpainting masks: (h, w) float32 arrays, 1 to repaint, 0 to keep, values between for a mixture.

The model gets a binary mask, thresholded at 0.5 (`binarize`). Grey values count when the original is pasted
back (`feather`):

    weight = mask * distance / (blur + 1), at most mask          distance: pixels to the nearest kept pixel

A blur therefore fades the paint out inside the mask, and pixels outside it stay as they are, byte for byte.
To fade out around an object, grow the mask first. The border of the image is not a border of the mask.
"""

import logging
from typing import NamedTuple

import numpy as np

from ldm.errors import InputError

MAX_PIXELS = 1024  # limit of growing, shrinking and blurring
THRESHOLD = 0.5
COLOURED = 48  # of 255: channels that differ by more are a colour
BLACK, WHITE = 51, 204  # of 255: the brightest that counts as black, and the darkest as white
STRAY = 0.05  # the share of pixels that may be in colour or between, such as those at edges

log = logging.getLogger(__name__)


class Box(NamedTuple):
    """A rectangle of pixels; bottom and right are exclusive."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def part(self) -> tuple[slice, slice]:
        """The index of the rectangle in an array (..., h, w)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def from_alpha(image: np.ndarray) -> np.ndarray:
    """Return the mask of the alpha channel of (h, w, 4) uint8: transparent pixels are repainted."""
    return 1 - image[:, :, 3].astype(np.float32) / 255


def from_image(image: np.ndarray) -> np.ndarray:
    """Return the mask of an image (h, w, 3 or 4) uint8: white is repainted; transparent counts as black.

    Raises: InputError for what is no mask: an image in colour, or a cut-out whose opaque part is not white.
    """
    _check_is_mask(image)
    grey = image[:, :, :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    alpha = image[:, :, 3].astype(np.float32) / 255 if image.shape[2] == 4 else 1.0
    return np.clip(np.rint(grey * alpha * 65535) / 65535, 0, 1).astype(np.float32)  # white is exactly 1


def _check_is_mask(image: np.ndarray) -> None:
    colours = image[:, :, :3].astype(np.int16)
    visible = image[:, :, 3] >= 128 if image.shape[2] == 4 else np.ones(image.shape[:2], bool)
    advice = (
        "white is repainted and black is kept, so paint the part to repaint white; to repaint around a "
        "cut-out, give it as --init-img without --mask"
    )
    if ((np.ptp(colours, axis=2) > COLOURED) & visible).sum() > STRAY * visible.sum():
        raise InputError(f"the mask is in colour; {advice}")
    if visible.all() or not visible.any():
        return
    grey = colours.mean(axis=2)[visible]
    white, black = (grey >= WHITE).mean(), (grey <= BLACK).mean()
    if white < STRAY or 1 - white - black > STRAY:
        raise InputError(
            f"the mask is transparent in part, and {100 * (1 - white):.0f} % of its opaque part is not "
            f"white; {advice}"
        )
    if black > STRAY:
        log.info("the mask is transparent in part, which counts as black")


def check(mask: np.ndarray, height: int, width: int) -> None:
    """Raise InputError unless `mask` has this size and values from 0 to 1."""
    if mask.shape != (height, width):
        got = "x".join(map(str, reversed(mask.shape[:2])))
        raise InputError(
            f"the mask is {got} and the image is {width}x{height}; expected a mask of the same size"
        )
    if not (np.isfinite(mask).all() and 0 <= mask.min() and mask.max() <= 1):
        raise InputError("the mask has values outside 0..1; expected 0 (keep) to 1 (repaint)")


def check_paints(mask: np.ndarray) -> None:
    """Raise InputError if the mask selects nothing to repaint."""
    if not binarize(mask).any():
        top = f"; its maximum is {round(100 * float(mask.max()))} %" if mask.max() > 0 else ""
        raise InputError(
            f"the mask leaves nothing to repaint: no pixel is white (50 % or more{top}); white is repainted, "
            "black is kept, --invert-mask exchanges them"
        )


def prepared(mask: np.ndarray, *, invert: bool = False, grow: int = 0) -> np.ndarray:
    """Return the mask inverted first, if requested, and then grown."""
    return grown(1 - mask if invert else mask, grow)


def binarize(mask: np.ndarray) -> np.ndarray:
    """Return the mask (h, w) bool that the model gets: True to repaint."""
    return mask >= THRESHOLD


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return the mask with its border moved outwards by `pixels` in every direction; negative: inwards."""
    if pixels < 0:
        return 1 - grown(1 - mask, -pixels)
    if pixels == 0:
        return mask
    _check_pixels("growing the mask", pixels)
    height, width = mask.shape
    pixels = min(pixels, height + width)
    spans = _running_maxima(mask, pixels)
    result = mask.copy()
    for dy in range(-min(pixels, height - 1), min(pixels, height - 1) + 1):
        reach = int((pixels * pixels - dy * dy) ** 0.5)  # half the width of the disc in this row
        rows = _maximum_within(spans, reach, width, slice(max(dy, 0), height + min(dy, 0)))
        target = result[max(-dy, 0) : height - max(dy, 0)]
        np.maximum(target, rows, out=target)
    return result


def distance(inside: np.ndarray, limit: int) -> np.ndarray:
    """Return (h, w) float32: the distance of each pixel to the nearest one outside, at most limit + 1.

    The distance is Euclidean and exact up to the limit, 1 next to the border and 0 outside. (Felzenszwalb and
    Huttenlocher, 2012: the squared distance is a minimum along columns, then along rows.)
    """
    _check_pixels("the distance to the border of the mask", limit)
    far = limit + 1
    squared = np.where(inside, np.float32(far * far), np.float32(0))
    for axis in (0, 1):
        squared = _lowest_along(squared, min(limit, squared.shape[axis] - 1), axis)
    return np.sqrt(np.minimum(squared, far * far))


def feather(mask: np.ndarray, blur: int) -> np.ndarray:
    """Return the weight of each painted pixel: the mask, fading out inwards over `blur` pixels."""
    if blur == 0:
        return mask
    return mask * np.minimum(distance(mask > 0, blur) / (blur + 1), 1)


def box(mask: np.ndarray, padding: int = 0) -> Box:
    """Return the bounding box of all values above 0, extended by `padding` pixels within the image."""
    rows, columns = np.flatnonzero((mask > 0).any(1)), np.flatnonzero((mask > 0).any(0))
    height, width = mask.shape
    return Box(
        max(int(rows[0]) - padding, 0),
        max(int(columns[0]) - padding, 0),
        min(int(rows[-1]) + 1 + padding, height),
        min(int(columns[-1]) + 1 + padding, width),
    )


def squarer(box: Box, height: int, width: int) -> Box:
    """Return the box with its shorter side extended to the longer one, as far as the image allows."""
    side = max(box.height, box.width)
    top, bottom = _lengthened(box.top, box.bottom, side, height)
    left, right = _lengthened(box.left, box.right, side, width)
    return Box(top, left, bottom, right)


def _lengthened(start: int, stop: int, length: int, end: int) -> tuple[int, int]:
    length = min(max(length, stop - start), end)
    start = min(max(start - (length - (stop - start)) // 2, 0), end - length)
    return start, start + length


def _check_pixels(what: str, pixels: int) -> None:
    if not 0 <= pixels <= MAX_PIXELS:
        raise InputError(f"{what} is {pixels} pixels; expected at most {MAX_PIXELS}")


def _running_maxima(mask: np.ndarray, pixels: int) -> list[np.ndarray]:
    """Return, for k = 0, 1, ..., the maximum of the 2^k pixels from each to the right, padded with 0."""
    spans = [np.pad(mask, ((0, 0), (pixels, pixels)))]
    while 2 ** len(spans) <= 2 * pixels + 1:
        half, last = 2 ** (len(spans) - 1), spans[-1]
        spans.append(np.maximum(last[:, :-half], last[:, half:]))
    return spans


def _maximum_within(spans: list[np.ndarray], reach: int, width: int, rows: slice) -> np.ndarray:
    """Return the maximum of the 2 reach + 1 pixels around each, from two overlapping spans."""
    length = 2 * reach + 1
    k = length.bit_length() - 1
    first = (spans[0].shape[1] - width) // 2 - reach
    span, second = spans[k][rows], first + length - 2**k
    return np.maximum(span[:, first : first + width], span[:, second : second + width])


def _lowest_along(squared: np.ndarray, limit: int, axis: int) -> np.ndarray:
    """Return the minimum over d of squared[. + d] + d^2 along an axis."""
    result = squared.copy()
    source, target = np.moveaxis(squared, axis, 0), np.moveaxis(result, axis, 0)
    for d in range(1, limit + 1):
        np.minimum(target[d:], source[:-d] + d * d, out=target[d:])
        np.minimum(target[:-d], source[d:] + d * d, out=target[:-d])
    return result
