"""Masks: where a picture is to be painted anew. (h, w) float32, 1 paint, 0 keep, between: a mixture.

The model is told yes or no, at 0.5 (`hard`); the mixture is made when the original is put back (`weight`):

    weight = mask * depth / (blur + 1), at most mask          depth: pixels to the nearest that is kept whole

so that a blur fades the paint out inside the mask, and what lies outside it stays byte for byte. To fade out
around an object, grow the mask first. The border of the picture is no border of the mask.
"""

from typing import NamedTuple

import numpy as np

from ldm.errors import InputError

MAX_PIXELS = 1024  # of growing, shrinking, blurring
THRESHOLD = 0.5


class Box(NamedTuple):
    """A rectangle of whole pixels; bottom and right are outside it."""

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
        """What to index (..., h, w) with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def from_alpha(image: np.ndarray) -> np.ndarray:
    """Return the mask that the alpha of (h, w, 4) uint8 stands for: what is transparent is painted."""
    return 1 - image[:, :, 3].astype(np.float32) / 255


def from_picture(image: np.ndarray) -> np.ndarray:
    """Return the mask that (h, w, 3 or 4) uint8 shows: white is painted; transparency counts as black."""
    grey = image[:, :, :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    alpha = image[:, :, 3].astype(np.float32) / 255 if image.shape[2] == 4 else 1.0
    return np.clip(np.rint(grey * alpha * 65535) / 65535, 0, 1).astype(np.float32)  # white is exactly 1


def check(mask: np.ndarray, height: int, width: int) -> None:
    """Raise InputError unless this is a mask of a picture of that size."""
    if mask.shape != (height, width):
        got = "x".join(map(str, reversed(mask.shape[:2])))
        raise InputError(
            f"the mask is {got} and the picture {width}x{height}; expected one size, a pixel for each pixel"
        )
    if not (np.isfinite(mask).all() and 0 <= mask.min() and mask.max() <= 1):
        raise InputError("the mask has values outside 0..1; expected 0 (keep) to 1 (paint)")


def check_paints(mask: np.ndarray) -> None:
    """Raise InputError where the mask leaves nothing to paint."""
    if not hard(mask).any():
        top = f", at most {round(100 * float(mask.max()))} %" if mask.max() > 0 else ""
        raise InputError(
            f"the mask leaves nothing to paint: it is nowhere white (50 % and above{top}); white is "
            "painted, black is kept, --invert-mask exchanges them"
        )


def prepared(mask: np.ndarray, *, invert: bool = False, grow: int = 0) -> np.ndarray:
    """Return the mask as a user wants it: inverted first, then grown."""
    return grown(1 - mask if invert else mask, grow)


def hard(mask: np.ndarray) -> np.ndarray:
    """Return (h, w) bool, what the model is told to paint."""
    return mask >= THRESHOLD


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return the mask with its border moved outwards by `pixels`, in every direction; below 0 inwards."""
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
        reach = int((pixels * pixels - dy * dy) ** 0.5)  # the disc's half width in this row
        rows = _maximum_within(spans, reach, width, slice(max(dy, 0), height + min(dy, 0)))
        target = result[max(-dy, 0) : height - max(dy, 0)]
        np.maximum(target, rows, out=target)
    return result


def distance(inside: np.ndarray, limit: int) -> np.ndarray:
    """Return (h, w) float32: how far each pixel is from the nearest that is not `inside`, at most limit + 1.

    Euclidean and exact up to the limit, 1 beside the border, 0 outside. (Felzenszwalb and Huttenlocher, 2012:
    the squared distance is a minimum along columns, then along rows.)
    """
    _check_pixels("the distance to the border of the mask", limit)
    far = limit + 1
    squared = np.where(inside, np.float32(far * far), np.float32(0))
    for axis in (0, 1):
        squared = _lowest_along(squared, min(limit, squared.shape[axis] - 1), axis)
    return np.sqrt(np.minimum(squared, far * far))


def weight(mask: np.ndarray, blur: int) -> np.ndarray:
    """Return what share of the painted pixel is taken: the mask, fading out inside over `blur` pixels."""
    if blur == 0:
        return mask
    return mask * np.minimum(distance(mask > 0, blur) / (blur + 1), 1)


def box(mask: np.ndarray, padding: int = 0) -> Box:
    """Return the rectangle around all that is above 0, and `padding` pixels more, inside the picture."""
    rows, columns = np.flatnonzero((mask > 0).any(1)), np.flatnonzero((mask > 0).any(0))
    height, width = mask.shape
    return Box(
        max(int(rows[0]) - padding, 0),
        max(int(columns[0]) - padding, 0),
        min(int(rows[-1]) + 1 + padding, height),
        min(int(columns[-1]) + 1 + padding, width),
    )


def squarer(box: Box, height: int, width: int) -> Box:
    """Return the box with its shorter side lengthened to the longer, as far as the picture goes."""
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
    """Return for k = 0, 1, ... the maxima of 2^k neighbours to the right, on rows padded with 0."""
    spans = [np.pad(mask, ((0, 0), (pixels, pixels)))]
    while 2 ** len(spans) <= 2 * pixels + 1:
        half, last = 2 ** (len(spans) - 1), spans[-1]
        spans.append(np.maximum(last[:, :-half], last[:, half:]))
    return spans


def _maximum_within(spans: list[np.ndarray], reach: int, width: int, rows: slice) -> np.ndarray:
    """Return the maximum of the 2 reach + 1 pixels around each: that of two overlapping spans."""
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
