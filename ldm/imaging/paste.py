"""Put the pixels of a picture back where nothing was to be painted, byte for byte.

    result = weight painted + (1 - weight) original       rounded to 8 bits; weights 0 and 1 copy bytes

An autoencoder changes every pixel a little. Edits that are to touch the mask alone, again and again, need the
original's own bytes around it. It is the last thing that is done to a picture, after the watermark too.
"""

from dataclasses import dataclass

import numpy as np


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

        What is painted is opaque. Where it is mixed with what is not, a colour counts as far as it is seen.
        """
        weight = self.weight[:, :, None]
        share = weight
        if self.original.shape[2] == 4:
            painted = np.dstack([painted, np.full(painted.shape[:2], 255, np.uint8)])
            alpha = weight + (1 - weight) * self.original[:, :, 3:].astype(np.float32) / 255
            colour = np.divide(weight, alpha, out=np.zeros_like(weight), where=alpha > 0)
            share = np.concatenate([colour, colour, colour, weight], axis=2)
        mixed = np.rint(share * painted + (1 - share) * self.original).astype(np.uint8)
        return np.where(weight <= 0, self.original, np.where(weight >= 1, painted, mixed))


def opaque(image: np.ndarray, background: int = 255) -> np.ndarray:
    """Return uint8 (h, w, 3) of a picture with 3 or 4 channels; transparency is laid on a grey level."""
    if image.shape[2] == 3:
        return image
    alpha = image[:, :, 3:].astype(np.float32) / 255
    return np.rint(alpha * image[:, :, :3] + (1 - alpha) * background).astype(np.uint8)
