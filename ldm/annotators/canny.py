"""Edges by Canny's detector (IEEE PAMI 8, 1986), as OpenCV computes them.

    white where the gradient |dx| + |dy| of a channel (Sobel 3x3) is the largest across the edge, and above
    `high`, or above `low` and connected to such a pixel

The thresholds and their defaults are those of ControlNet's page canny2image.
"""

from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator, as_rgb
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@request(resolution=512)
class Canny(Annotator):
    """White edges of one pixel on black."""

    low: int = option(
        100, "--low", "--low-threshold", metavar="N", low=1, high=255,
        help="gradient from which an edge is continued, in levels per pixel",
    )  # fmt: skip
    high: int = option(
        200, "--high", "--high-threshold", metavar="N", low=1, high=255,
        help="gradient at which an edge begins, in levels per pixel",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import cv2

        return as_rgb(cv2.Canny(image, self.low, self.high))
