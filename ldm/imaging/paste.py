"""Put the pixels of a picture back where nothing was to be painted, byte for byte.

    result = weight painted + (1 - weight) original       rounded to 8 bits; weights 0 and 1 copy bytes

An autoencoder changes every pixel a little. Edits that are to touch the mask alone, again and again, need the
original's own bytes around it. It is the last thing that is done to a picture, after the watermark too.
"""

from dataclasses import dataclass

import numpy as np

from ldm.imaging.colour import check_uint8


@dataclass(frozen=True)
class Paste:
    """What comes back where.

    Args:
        original: (h, w, 3) or, with alpha, (h, w, 4), uint8.
        weight: (h, w) float32, 1 where the painted pixel is taken, 0 where the original stays.
    """

    original: np.ndarray
    weight: np.ndarray

    def onto(self, painted: np.ndarray) -> np.ndarray:
        """Return `painted` (h, w, 3) uint8 with the original put back, of as many channels as that has.

        Paint covers what is transparent first: `weight` of a pixel is paint, and of the rest the original
        covers what it did, so that a cut-out with soft edges, painted where it is clear, becomes opaque.
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
    """Return uint8 (h, w, 3) of a picture with 3 or 4 channels; transparency is laid on a grey level.

    Raises: InputError for arrays of another shape or dtype.
    """
    check_uint8(image, (3, 4))
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return np.rint(alpha * image[:, :, :3] + (1 - alpha) * background).astype(np.uint8)
