"""A scribble from a photograph: HED's edges, thinned and drawn thickly, as on ControlNet's page.

    e = G_3 * edges                                              G_3: a Gaussian of 3 pixels
    line where e is the largest of its three neighbours across one of four directions, and above 127
    map = 255 where G_3 * (255 line) > 4

The edges are brought to the size of the map before they are thinned.
"""

from typing import TYPE_CHECKING

from ldm.annotators.base import as_rgb
from ldm.annotators.hed import Hed
from ldm.requests.fields import request

if TYPE_CHECKING:
    import numpy as np

SIGMA, LINE, DRAWN = 3.0, 127, 4        # pixels, and levels of 0..255


@request()
class FakeScribble(Hed):
    """White strokes on black."""

    def finish(self, edges: "np.ndarray") -> "np.ndarray":
        import cv2

        lines = 255 * thin_lines(edges[..., 0]).astype("uint8")
        return as_rgb(cv2.GaussianBlur(lines, (0, 0), SIGMA) > DRAWN)


def thin_lines(edges: "np.ndarray") -> "np.ndarray":
    """Return where the lines of edges (h, w) in 0..255 are, (h, w) bool."""
    import cv2
    import numpy as np

    smooth = cv2.GaussianBlur(edges.astype(np.float32), (0, 0), SIGMA)
    across = np.eye(3, dtype=np.uint8)
    middle = np.zeros((3, 3), np.uint8)
    middle[1] = 1
    directions = (middle, middle.T, across, across[::-1])
    is_ridge = np.any([cv2.dilate(smooth, each) == smooth for each in directions], axis=0)
    return is_ridge & (smooth > LINE)
