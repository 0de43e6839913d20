"""Iterative back-projection: make an upscaled image agree with its low-resolution input.

    x <- x + U(y - D(x))        D: antialiased bicubic to the small size, U: bicubic to the large size

is repeated (Irani and Peleg, "Improving resolution by image registration", CVGIP 53, 1991). Colours and
shades then come from the small image, and only the detail that it cannot contain comes from the model. This
removes colour shifts and blotches.
"""

import torch.nn.functional as F
from torch import Tensor

ROUNDS = 10  # the remaining difference is then below one 8-bit level, except where values are clipped


def back_project(large: Tensor, small: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Return images (b, 3, H, W) in -1..1 that shrink to `small`, (1 or b, 3, h, w) in -1..1."""
    large, size = large.clamp(-1, 1), large.shape[-2:]
    for _ in range(rounds):
        shrunk = F.interpolate(large, small.shape[-2:], mode="bicubic", antialias=True)
        difference = F.interpolate(small - shrunk, size, mode="bicubic", align_corners=False)
        large = (large + difference).clamp(-1, 1)
    return large
