"""Paste the original pixels back outside the mask, byte for byte.

    result = weight painted + (1 - weight) original       rounded to 8 bits; weights 0 and 1 copy bytes

An autoencoder changes every pixel a little. Repeated edits that should change only the masked part need the
original bytes around it. Pasting is the last operation on an image, after the watermark.
"""

from dataclasses import dataclass

import numpy as np

from ldm.imaging.colour import check_uint8


@dataclass(frozen=True)
class Paste:
    """The original image and the weight of the painted one.

    Args:
        original: (h, w, 3) or, with alpha, (h, w, 4), uint8.
        weight: (h, w) float32, 1 for the painted pixel, 0 for the original.
    """

    original: np.ndarray
    weight: np.ndarray

    def onto(self, painted: np.ndarray) -> np.ndarray:
        """Return `painted` (h, w, 3) uint8 with the original pasted back; it has the original's channels.

        Paint fills the transparent share of a pixel first: `weight` of the pixel is paint, and the original
        covers as much of the rest as its alpha allows. A cut-out with soft edges, painted where it is
        transparent, thus becomes opaque.
        """
        weight = self.weight[:, :, None]
        original = self.original[:, :, :3].astype(np.float32)
        if self.original.shape[2] == 3:
            mixed = weight * painted + (1 - weight) * original
        else:
            kept = np.minimum(self.original[:, :, 3:].astype(np.float32) / 255, 1 - weight)
            alpha = weight + kept  # (h, w, 1)
            share = np.divide(weight, alpha, out=np.zeros_like(weight), where=alpha > 0)
            mixed = np.dstack([share * painted + (1 - share) * original, 255 * alpha])
            painted = np.dstack([painted, np.full(painted.shape[:2], 255, np.uint8)])
        mixed = np.rint(mixed).astype(np.uint8)
        return np.where(weight <= 0, self.original, np.where(weight >= 1, painted, mixed))


def opaque(image: np.ndarray, background: int = 255) -> np.ndarray:
    """Return (h, w, 3) uint8 of an image with 3 or 4 channels, composited over a grey level.

    Raises: InputError for arrays of another shape or dtype.
    """
    check_uint8(image, (3, 4))
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return np.rint(alpha * image[:, :, :3] + (1 - alpha) * background).astype(np.uint8)
