"""The image under a Gaussian blur; the default is that of A1111's web UI."""

from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@request()
class Blur(Annotator):
    """The colours of the image without its edges."""

    sigma: float = option(
        9.0, "--sigma", metavar="X", low=0.01, high=64.0, help="standard deviation of the blur, in pixels",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import cv2

        return cv2.GaussianBlur(image, (0, 0), self.sigma)
