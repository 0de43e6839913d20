"""Fit an image to a size, in one of four ways.

| fit     | with a target size                            | without                                      |
|---------|-----------------------------------------------|----------------------------------------------|
| exact   | only the image's own size is allowed          | the image is unchanged                       |
| crop    | scale to cover the size, cut out the middle   | the same; sides rounded down to the multiple |
| stretch | scale to the size, ignoring the aspect ratio  | the same; sides rounded down to the multiple |
| pad     | scale to fit inside, mirror the rest          | no scaling; mirror up to the next multiple   |

    fit = choose_fit(image, "crop", height=512, width=768)     # InputError here, before there is a model
    image = fit.of(image, model.size_multiple)                 # (512, 768, 3)

The multiple is the model's `size_multiple`. Scaling is Pillow's Lanczos. `stretch` without a size is what the
reference img2img.py does, with a multiple of 64. Sides shorter than one multiple become one multiple, where
the reference script fails.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ldm.errors import InputError
from ldm.imaging.files import MAX_SIDE
from ldm.imaging.padding import Frame

FITS = ("exact", "crop", "pad", "stretch")

Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Fit:
    """How to fit an image, and the target size."""

    mode: str
    size: Size | None = None  # None: any size that the model takes

    def of(self, image: np.ndarray, multiple: int, nearest: bool = False) -> np.ndarray:
        """Return the image (h, w, c) uint8, or (h, w) float32, fitted.

        Args:
            multiple: sides are multiples of this if there is no target size.
            nearest: take the nearest pixels, so that no other colours appear.
        """
        if self.mode == "exact":
            return image
        if self.mode == "pad":
            return _padded(image, self.size, multiple, nearest)
        own = image.shape[:2]
        size = self.size or tuple(max(side // multiple, 1) * multiple for side in own)
        return _scaled(image, size, nearest, _middle(own, size) if self.mode == "crop" else None)


def choose_fit(
    image: np.ndarray, mode: str | None = None, height: int | None = None, width: int | None = None
) -> Fit:
    """Return how to fit an image (h, w, c).

    Args:
        mode: one of FITS; None is exact, or crop if a height or width is given.
        height, width: of the result; if only one is given, the other keeps the aspect ratio.

    Raises:
        InputError: mode is unknown, exact contradicts the size, or a side becomes too long.
    """
    if mode is not None and mode not in FITS:
        raise InputError(f"unknown fit {mode!r}: expected one of {', '.join(FITS)}")
    own_height, own_width = image.shape[:2]
    if height is None and width is None:
        return Fit(mode or "exact")
    height = height or max(1, round(own_height * width / own_width))
    width = width or max(1, round(own_width * height / own_height))
    if max(height, width) > MAX_SIDE:
        raise InputError(
            f"an image of {own_width}x{own_height} would become {width}x{height}; expected at most "
            f"{MAX_SIDE} pixels per side: give both height and width"
        )
    if mode == "exact" and (height, width) != (own_height, own_width):
        raise InputError(
            f"the image is {own_width}x{own_height} and the requested size is {width}x{height}, which fit "
            "exact does not allow: use fit crop, pad or stretch, or leave out the size"
        )
    return Fit(mode or "crop", (height, width))


def _middle(own: Size, size: Size) -> tuple[float, float, float, float]:
    """Return (left, top, right, bottom) of the largest centred crop with the aspect ratio of `size`."""
    scale = max(size[0] / own[0], size[1] / own[1])
    top, left = (max(0, own[axis] - size[axis] / scale) / 2 for axis in (0, 1))
    return left, top, own[1] - left, own[0] - top


def _scaled(
    image: np.ndarray, size: Size, nearest: bool, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Resize an image, or a box of it, to (height, width)."""
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size[::-1], how, box=box))


def _padded(image: np.ndarray, size: Size | None, multiple: int, nearest: bool) -> np.ndarray:
    if size is None:
        frame = Frame.around(*image.shape[:2], multiple)
    else:
        scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
        inner = tuple(
            min(max(1, round(own * scale)), side) for own, side in zip(image.shape[:2], size, strict=True)
        )
        image = _scaled(image, inner, nearest)
        frame = Frame(*inner, *size)
    channels_first = torch.from_numpy(np.atleast_3d(image).copy()).permute(2, 0, 1)  # (c, h, w)
    padded = np.ascontiguousarray(frame.pad(channels_first).permute(1, 2, 0).numpy())
    return padded.reshape(*padded.shape[:2], *image.shape[2:])
