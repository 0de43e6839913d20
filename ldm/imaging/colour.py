"""Convert between 8-bit images (n, h, w, 3) and the models' tensors (n, 3, h, w) in -1..1.

    from uint8:  x = 2 * (u / 255) - 1
    to uint8:    u = trunc(255 * clamp((x + 1) / 2, 0, 1))

The conversion to uint8 truncates as the reference scripts do, so that a seed gives the same image as there.
Both directions compute in float32: in half precision 255 * x is already off by one level.
"""

import numpy as np
import torch

from ldm.errors import InputError

BLACK = 2  # of 255: visually the same as 0, and every real image has brighter values


def from_uint8(images: np.ndarray) -> torch.Tensor:
    """Convert uint8 (n, h, w, 3) or one (h, w, 3) to float32 (n, 3, h, w) in -1..1.

    Raises: InputError for arrays of another shape or dtype.
    """
    check_uint8(images, (3,))
    images = images[None] if images.ndim == 3 else images
    scaled = images.astype(np.float32) / 255.0
    return 2.0 * torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy()) - 1.0


def check_uint8(images: np.ndarray, channels: tuple[int, ...]) -> None:
    """Raise InputError unless `images` is (h, w, c) or (n, h, w, c) uint8 with c in `channels`."""
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] not in channels:
        count = " or ".join(map(str, channels))
        raise InputError(
            f"got an image array of shape {images.shape} and dtype {images.dtype}; expected (height, width, "
            f"{count}) uint8, RGB from 0 to 255"
        )


def to_uint8(images: torch.Tensor) -> np.ndarray:
    """Convert (n, 3, h, w) in -1..1 (clamped) to uint8 (n, h, w, 3) by truncation."""
    scaled = 255.0 * torch.clamp((images.float() + 1.0) / 2.0, 0.0, 1.0)
    return scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def is_black(image: np.ndarray) -> bool:
    """Return whether a uint8 image is all black: no value exceeds BLACK."""
    return int(image.max()) <= BLACK
