"""The additional inputs of conditional models: their names in a batch, and depth from an outline.

    mask     where to paint
    depth    the image's alpha, inflated: sqrt(1 - (1 - d / max d)^2), d the steps to its edge
    small    the image at a quarter of its sides
    hint     the map that a ControlNet follows, in 0..1

A data set of a conditional model gives {NAME: (b, c, h, w)} as the third part of a batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EXTRA_INPUTS = ("mask", "depth", "small", "hint")


def inflated(alpha: Tensor) -> Tensor:
    """Return the height (b, 1, h, w), 0 to 1, of shapes (b, 1, h, w) in 0..1 blown up to cushions.

    Steps go to the 4 and the 8 neighbours in turn, so that distances grow in octagons.
    """
    inside = F.pad((alpha >= 0.5).float(), (1, 1, 1, 1))  # outside the image is nothing
    steps, taken = torch.zeros_like(inside), 0
    while bool(inside.any()):
        steps, taken = steps + inside, taken + 1
        if taken % 2:
            inside = -F.max_pool2d(-inside, 3, 1, 1)
        else:
            across = -F.max_pool2d(-inside, (1, 3), 1, (0, 1))
            inside = torch.minimum(across, -F.max_pool2d(-inside, (3, 1), 1, (1, 0)))
    steps = steps[..., 1:-1, 1:-1]
    share = steps / steps.amax(dim=(1, 2, 3), keepdim=True).clamp_min(1)
    return (1 - (1 - share).square()).sqrt()
