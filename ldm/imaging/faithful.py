"""Make an enlarged picture agree with the small one that it is of.

    x <- x + U(y - D(x))        D: antialiased bicubic to the small size, U: bicubic to the large one

repeated: back-projection (Irani and Peleg, "Improving resolution by image registration", CVGIP 53, 1991).
What the small picture says of colours and shades then stands as it says, and only what it cannot say, the
detail, is the model's. It takes away shifts of colour and blotches.
"""

import torch.nn.functional as F
from torch import Tensor

ROUNDS = 10  # the rest of the difference is then below a step of 8 bits, but where values are clipped


def made_faithful(large: Tensor, small: Tensor, rounds: int = ROUNDS) -> Tensor:
    """Return pictures (b, 3, H, W) in -1..1 that give `small`, (1 or b, 3, h, w) in -1..1, when shrunk."""
    large, size = large.clamp(-1, 1), large.shape[-2:]
    for _ in range(rounds):
        shrunk = F.interpolate(large, small.shape[-2:], mode="bicubic", antialias=True)
        difference = F.interpolate(small - shrunk, size, mode="bicubic", align_corners=False)
        large = (large + difference).clamp(-1, 1)
    return large
