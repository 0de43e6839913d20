"""A drawing, inverted: white where the darkest channel is below 127, as on ControlNet's page scribble2image.

`sketch` and `fake_scribble` make such maps from photographs.
"""

from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator, as_rgb
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@request()
class Scribble(Annotator):
    """White strokes on black, from dark strokes on light ground."""

    IS_SMOOTH = False
    threshold: int = option(
        127, "--threshold", metavar="N", low=1, high=255, help="level below which a pixel is drawn",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        return as_rgb(image.min(axis=2) < self.threshold)
