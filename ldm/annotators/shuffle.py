"""The content of the image at random places: what the shuffle model of ControlNet 1.1 recomposes.

    map(y, x) = image(v(y, x) (h - 1), u(y, x) (w - 1)),  linearly interpolated

u and v are smooth noise in 0..1: uniform numbers on a grid of `cell` pixels, enlarged by cubic interpolation
and stretched to the whole range. u is drawn before v, so that `numpy.random.seed(seed)` gives the same flow
elsewhere.
"""

from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@request()
class Shuffle(Annotator):
    """The colours and textures of the image without its composition."""

    seed: int = option(12345, "--seed", metavar="N", low=0, high=2**32 - 1, help="seed of the flow field")
    cell: int = option(
        256, "--cell", metavar="N", low=8, high=2048, help="distance of the random numbers, in pixels",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import cv2
        import numpy as np

        height, width = image.shape[:2]
        draw = np.random.RandomState(self.seed)
        u, v = (smooth_noise(draw, height, width, self.cell) for _ in range(2))
        flow = [(x * (side - 1)).astype(np.float32) for x, side in ((u, width), (v, height))]
        return cv2.remap(image, *flow, cv2.INTER_LINEAR)


def smooth_noise(draw: "np.random.RandomState", height: int, width: int, cell: int) -> "np.ndarray":
    """Return noise (height, width) in 0..1 that varies over `cell` pixels; of one pixel it is 0."""
    import cv2

    grid = draw.uniform(0, 1, (height // cell + 2, width // cell + 2))
    large = cv2.resize(grid, (width + 2 * cell, height + 2 * cell), interpolation=cv2.INTER_CUBIC)
    noise = large[cell : cell + height, cell : cell + width]
    noise = noise - noise.min()
    return noise / (noise.max() or 1.0)
