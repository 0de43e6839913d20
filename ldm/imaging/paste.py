"""Paste the original pixels back outside the mask, byte for byte.

    result = weight painted + (1 - weight) original       rounded to 8 bits; weights 0 and 1 copy bytes
    weight is at least 1 - alpha where it is above 0: what was transparent and is painted becomes opaque

An autoencoder changes every pixel a little. Repeated edits that should change only the masked part need the
original bytes around it. Pasting is the last operation on an image, after the watermark.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ldm.imaging.colour import check_uint8
from ldm.imaging.profiles import from_srgb, to_srgb


@dataclass(frozen=True)
class Paste:
    """The original image and the weight of the painted one.

    Args:
        original: (h, w, 3) or, with alpha, (h, w, 4), uint8.
        weight: (h, w) float32, 1 for the painted pixel, 0 for the original.
        profile: of the original's colours; None for sRGB.
    """

    original: np.ndarray
    weight: np.ndarray
    profile: bytes | None = None

    @property
    def seen(self) -> np.ndarray:
        """What the model sees of the original, (h, w, 3) uint8 in sRGB, transparency on white."""
        return opaque(to_srgb(self.original, self.profile))

    def onto(
        self, painted: np.ndarray, change: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> np.ndarray:
        """Return `painted` (h, w, 3) uint8 in sRGB with the original pasted back.

        The result has the original's channels and its colours, those of `profile`.

        Args:
            change: what is done to the painted image in these colours first, such as a watermark.
        """
        painted = from_srgb(painted, self.profile)
        painted = painted if change is None else change(painted)
        weight, original = self.weight[:, :, None], self.original
        if original.shape[2] == 4:
            clear = 1 - original[:, :, 3:].astype(np.float32) / 255
            weight = np.where(weight > 0, np.maximum(weight, clear), 0)
            painted = np.dstack([painted, np.full(painted.shape[:2], 255, np.uint8)])
            original = np.dstack([original[:, :, :3], np.full(painted.shape[:2], 255, np.uint8)])
        mixed = np.rint(weight * painted + (1 - weight) * original.astype(np.float32)).astype(np.uint8)
        return np.where(weight <= 0, self.original, np.where(weight >= 1, painted, mixed))

    def shown(self, painted: np.ndarray) -> np.ndarray:
        """Return what `onto` does as it looks: (h, w, 3) uint8 in sRGB, transparency on white."""
        return opaque(to_srgb(self.onto(painted), self.profile))


def opaque(image: np.ndarray, background: int = 255) -> np.ndarray:
    """Return (h, w, 3) uint8 of an image with 3 or 4 channels, composited over a grey level.

    Raises: InputError for arrays of another shape or dtype.
    """
    check_uint8(image, (3, 4))
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return np.rint(alpha * image[:, :, :3] + (1 - alpha) * background).astype(np.uint8)
