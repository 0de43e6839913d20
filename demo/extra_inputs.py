"""The additional inputs of conditional models, made from the training images themselves.

    mask     where to paint: 20 % the whole image, 40 % a box, 40 % a broad stroke
    depth    the image's alpha, inflated (ldm.data.extra_inputs)
    small    the image at a quarter of its sides
    hint     its outlines as broad strokes, what a scribble shows

A data set takes `extra_input=NAME` and then gives {NAME: (b, c, h, w)} as the third part of a batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.extra_inputs import EXTRA_INPUTS, inflated
from ldm.errors import InputError

SHRINK = 4
STROKES = 60, 120  # Canny's thresholds after a blur of one pixel
WHOLE, BOX = 0.2, 0.6  # bounds of a uniform number: below the first the whole, below the second a box


def check_extra_input(name: str | None) -> None:
    """Raise InputError for an extra input that there is not."""
    if name is not None and name not in EXTRA_INPUTS:
        raise InputError(f"extra_input {name!r}: expected one of {', '.join(EXTRA_INPUTS)}, or none")


def make_extra_input(name: str, images: Tensor, alpha: Tensor, random: torch.Generator) -> dict[str, Tensor]:
    """Return {name: extra input} of images (b, 3, h, w) in -1..1, objects' alpha (b, 1, h, w) in 0..1."""
    if name == "mask":
        return {name: random_masks(random, len(images), images.shape[-1]).to(images.device)}
    if name == "hint":
        return {name: strokes(images)}
    return {name: inflated(alpha) if name == "depth" else shrunk(images)}


def strokes(images: Tensor) -> Tensor:
    """Return the outlines of images (b, 3, h, w) in -1..1 as strokes of 3 pixels, white on black in 0..1."""
    import cv2
    import numpy as np

    pixels = ((images.cpu() + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    edges = [cv2.Canny(cv2.GaussianBlur(image, (0, 0), 1.0), *STROKES) for image in pixels]
    edges = torch.from_numpy(np.stack(edges))[:, None].float() / 255
    return F.max_pool2d(edges, 3, 1, 1).expand(-1, 3, -1, -1).to(images)


def random_masks(random: torch.Generator, count: int, side: int) -> Tensor:
    """Return masks (count, 1, side, side), 1 where to paint."""
    draws = torch.rand(count, 14, generator=random)
    axis = (torch.arange(side) + 0.5) / side
    x, y = axis[None, None, :], axis[None, :, None]
    kind = draws[:, 0, None, None]
    mask = torch.where(kind < BOX, _boxes(draws[:, 1:5], x, y), _strokes(draws[:, 5:], x, y))
    return torch.where(kind < WHOLE, 1.0, mask)[:, None]


def _boxes(draws: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return boxes (n, h, w) whose sides are 0.25 to 0.75 of the image's."""
    sides = 0.25 + 0.5 * draws[:, :2]
    corner = (draws[:, 2:] * (1 - sides))[:, :, None, None]
    across, down = ((a - corner[:, i]) / sides[:, i, None, None] for i, a in enumerate((x, y)))
    return ((across >= 0) & (across < 1) & (down >= 0) & (down < 1)).float()


def _strokes(draws: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return what lies within 0.06 to 0.16 of a line through four random points, (n, h, w)."""
    radius = (0.06 + 0.1 * draws[:, 0])[:, None, None]
    points = draws[:, 1:].unflatten(1, (4, 2))[:, :, :, None, None]  # (n, 4, 2, 1, 1)
    nearest = torch.full((len(draws), y.shape[1], x.shape[2]), torch.inf)
    for start, end in zip(points.unbind(1)[:-1], points.unbind(1)[1:], strict=True):
        (x_0, y_0), (dx, dy) = start.unbind(1), (end - start).unbind(1)
        along = ((x - x_0) * dx + (y - y_0) * dy) / (dx**2 + dy**2).clamp_min(1e-6)
        along = along.clamp(0, 1)
        nearest = torch.minimum(nearest, (x - x_0 - along * dx) ** 2 + (y - y_0 - along * dy) ** 2)
    return (nearest < radius**2).float()


def shrunk(images: Tensor, factor: int = SHRINK) -> Tensor:
    """Return images (b, 3, h, w) at 1 / factor of their sides, by antialiased bicubic interpolation.

    Raises:
        InputError: a side that `factor` does not divide.
    """
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise InputError(f"images of {width} x {height} have no sides of 1/{factor}; expected multiples")
    size = (height // factor, width // factor)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
