"""Remove a visible border: measure the colour shift along it and continue it smoothly into the painted side.

An autoencoder shifts colours a little, so a painted region shows a rim next to the untouched pixels. For the
kept pixels next to the mask both the original and the decoded image are known; their difference is the shift:

    result = painted + pull_push(original - painted)       halved whenever the distance to the border doubles

`pull_push` is the pyramid of Gortler et al., "The Lumigraph" (SIGGRAPH 1996), section 3.3: it averages the
known values at half the size, recursively, and then goes back up, where each level fills only the pixels that
finer levels leave unknown. It costs 4/3 of one pass over the pixels.

The three constants were chosen on six images with each of the two demo models that can inpaint: the mean step
across the border fell from 27 to 19 and from 32 to 23 of 255. With nothing painted, where only the
autoencoder changes the image, it fell from 11.0 to 7.4 (5.6 next to the border), and the mean squared error
inside fell by 10 %.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RING = 4  # the shift is measured on kept pixels within this distance of the mask
REACH = 16.0  # pixels, two latents of SD; beyond this distance the correction decays
OUTLIER = 0.5  # of a range of 2: a larger difference is different content, not a colour shift


def pull_push(values: Tensor, known: Tensor, reach: float = math.inf) -> Tensor:
    """Return `values` (b, c, h, w) where they are known, and a smooth continuation of them elsewhere.

    Every result is an average of known values, so a constant stays constant. The result is 0 if no value is
    known.

    Args:
        known: (1 or b, 1, h, w), 0 (unknown) to 1 (known); values between are confidences.
        reach: distance in pixels from which the continuation decays: it halves whenever the distance doubles.
    """
    known = known.to(values)
    values = torch.where(known > 0, values, 0.0)  # unknown values may be anything, even NaN
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values
    weights = F.avg_pool2d(known, 2, ceil_mode=True)  # (b, 1, h/2, w/2)
    sums = F.avg_pool2d(values * known, 2, ceil_mode=True)
    means = torch.where(weights > 0, sums / weights.clamp(min=1e-12), 0.0)
    coarse = pull_push(means, (4 * weights).clamp(max=1), reach / 2)  # (b, c, h/2, w/2)
    filled = F.interpolate(coarse, size=(height, width), mode="bilinear")
    return known * values + (1 - known) * filled * (1.0 if reach >= 1 else 0.5)


def match_border(painted: Tensor, original: Tensor, distance: Tensor) -> Tensor:
    """Return `painted` (b, 3, h, w) with the colour shift at the border of the mask removed.

    Args:
        original: (1, 3, h, w), in the same range as `painted`, -1..1.
        distance: (h, w), pixels to the mask, 0 inside it; see ldm.imaging.masks.distance.
    """
    ring = (distance > 0) & (distance <= RING)
    if not bool(ring.any()):
        return painted
    shift = original - painted
    trust = torch.where(ring, 1 - (distance - 1) / RING, 0.0)  # the nearest pixels count most
    trust = trust * (shift.abs().amax(1, keepdim=True) <= OUTLIER)  # (b, 1, h, w)
    # averaged first, so that no single pixel is continued into the mask as a streak
    smooth = pull_push(_averaged(shift, trust), trust > 0, REACH)
    return painted + smooth


def _averaged(values: Tensor, trust: Tensor) -> Tensor:
    """Average each value with its trusted neighbours in a 9 x 9 window."""
    window = {"kernel_size": 9, "stride": 1, "padding": 4}
    return F.avg_pool2d(values * trust, **window) / F.avg_pool2d(trust, **window).clamp(min=1e-12)
