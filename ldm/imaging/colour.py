"""Between 8-bit pictures (n, h, w, 3) and what the models work on: (n, 3, h, w) in -1..1.

    in:  x = 2 * (u / 255) - 1
    out: u = trunc(255 * clamp((x + 1) / 2, 0, 1))

Out truncates, as the published scripts do, because their pictures are what seeds are compared by.
Both run in float32: in half precision 255 * x is already off by a step.
"""

import numpy as np
import torch

from ldm.errors import InputError

BLACK = 2  # of 255: no eye tells it from 0, and no picture of anything stays below


def from_uint8(images: np.ndarray) -> torch.Tensor:
    """Convert uint8 (n, h, w, 3) or one (h, w, 3) to float32 (n, 3, h, w) in -1..1.

    Raises: InputError for arrays of another shape or dtype.
    """
    check_uint8(images, (3,))
    images = images[None] if images.ndim == 3 else images
    scaled = images.astype(np.float32) / 255.0
    return 2.0 * torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy()) - 1.0


def check_uint8(images: np.ndarray, channels: tuple[int, ...]) -> None:
    """Raise InputError unless this is (h, w, c) or (n, h, w, c) uint8 of so many channels."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] not in channels:
        count = " or ".join(map(str, channels))
        raise InputError(
            f"a picture is an array of shape {images.shape} and {images.dtype}; expected (height, width, "
            f"{count}) uint8, RGB from 0 to 255"
        )


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Convert (n, 3, h, w) in -1..1 (clamped) to uint8 (n, h, w, 3) by truncation."""
    scaled = 255.0 * torch.clamp((images.float() + 1.0) / 2.0, 0.0, 1.0)
    return scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def is_black(image: np.ndarray) -> bool:
    """Tell whether a picture of uint8 shows nothing: no value of it exceeds BLACK."""
    return int(image.max()) <= BLACK
