"""Take a visible border away: what both sides know of it is spread smoothly into the painted side.

An autoencoder shifts colours a little, so a painted region shows a rim beside the untouched pixels. On the
kept pixels next to it the original and the decoded picture are both known, and their difference is the shift:

    result = painted + exp(-distance / reach) spread(original - painted)

`spread` is the pyramid of Gortler et al., "The Lumigraph" (SIGGRAPH 1996), section 3.3, pull-push: averages
of what is known at half the size, again and again, then back up, each level filling only what the finer ones
do not know. It costs 4/3 of one pass over the pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RING = 16  # kept pixels that say what the shift is: this near to the mask, two latents of SD
REACH = 32.0  # pixels into the painted region over which the correction falls to 1/e
TAIL = 4  # where the correction ends, in multiples of the reach
OUTLIER = 0.25  # of a range of 2: a difference beyond this is another content, no shift of colour


def spread(values: Tensor, known: Tensor) -> Tensor:
    """Return `values` (b, c, h, w) where they are known, and a smooth continuation of them elsewhere.

    Every result is an average of known values: a constant stays that constant. It is 0 where none is known.

    Args:
        known: (1 or b, 1, h, w), 0 (unknown) to 1 (known); between, how far a value is to be trusted.
    """
    known = known.to(values)
    values = torch.where(known > 0, values, 0.0)  # what is not known may be anything
    height, width = values.shape[-2:]
    if max(height, width) == 1:
        return values
    weights = F.avg_pool2d(known, 2, ceil_mode=True)  # (b, 1, h/2, w/2)
    sums = F.avg_pool2d(values * known, 2, ceil_mode=True)
    means = torch.where(weights > 0, sums / weights.clamp(min=1e-12), 0.0)
    coarse = spread(means, (4 * weights).clamp(max=1))  # (b, c, h/2, w/2)
    filled = F.interpolate(coarse, size=(height, width), mode="bilinear")
    return known * values + (1 - known) * filled


def match_border(painted: Tensor, original: Tensor, distance: Tensor) -> Tensor:
    """Return `painted` (b, 3, h, w) with the shift of colour at the border of the mask taken away inside it.

    Args:
        original: (1, 3, h, w), of the same range as `painted`, -1..1.
        distance: (h, w), how many pixels outside the mask, 0 inside; see ldm.imaging.masks.distance.
    """
    beside = (distance > 0) & (distance <= RING)
    if not bool(beside.any()):
        return painted
    shift = original - painted
    trust = torch.where(beside, 1 - (distance - 1) / RING, 0.0)  # the nearest pixels count most
    trust = trust * (shift.abs().amax(1, keepdim=True) <= OUTLIER)  # (b, 1, h, w)
    # Averaged first, so that no single pixel is drawn into the mask as a streak.
    smooth = spread(_averaged(shift, trust), trust > 0)
    return torch.where(distance > 0, painted, painted + smooth)


def _averaged(values: Tensor, trust: Tensor) -> Tensor:
    """Average the values with their trusted neighbours, 9 x 9."""
    window = {"kernel_size": 9, "stride": 1, "padding": 4}
    return F.avg_pool2d(values * trust, **window) / F.avg_pool2d(trust, **window).clamp(min=1e-12)
