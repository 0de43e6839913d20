"""White where every channel is lighter than a threshold; the default is that of A1111's web UI."""

from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator, as_rgb
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@request()
class Threshold(Annotator):
    """White on black."""

    IS_SMOOTH = False
    threshold: int = option(
        127, "--threshold", metavar="N", low=0, high=255, help="level above which a pixel is white",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        return as_rgb(image.min(axis=2) > self.threshold)
