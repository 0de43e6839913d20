"""Strokes as of a pen: a difference of Gaussians, as A1111's web UI has it under the name XDoG.

    white where 2 min over RGB (G_5 * I - G_0.5 * I) > threshold

G_s is a Gaussian of s pixels; the difference is positive where the image is darker than its surroundings.
"""

from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator, as_rgb
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np

FINE, COARSE = 0.5, 5.0     # standard deviations in pixels


@request(resolution=512)
class Sketch(Annotator):
    """White strokes on black, from a photograph; no network is needed."""

    IS_SMOOTH = False
    threshold: int = option(
        32, "--threshold", metavar="N", low=1, high=64,
        help="how much darker than its surroundings a stroke is, in half levels",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import cv2
        import numpy as np

        fine, coarse = (cv2.GaussianBlur(image.astype(np.float32), (0, 0), s) for s in (FINE, COARSE))
        darker = np.floor((coarse - fine).min(axis=2))
        return as_rgb(2 * darker > self.threshold)
