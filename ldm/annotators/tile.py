"""The image made smaller (by area) and as large as before (cubic), so that its finest details are gone.

The tile model of ControlNet 1.1 invents such details again. With a factor of 1, the default of A1111's web
UI, the image itself is the map, as on the page of the tile model.
"""

from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@request()
class Tile(Annotator):
    """The image without details smaller than `down` pixels."""

    down: float = option(
        1.0, "--down", metavar="X", low=1.0, high=64.0, help="factor by which the sides become smaller",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import cv2

        height, width = image.shape[:2]
        if self.down == 1:
            return image
        size = max(int(width / self.down), 1), max(int(height / self.down), 1)
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
