"""Line segments by LSD (von Gioi et al., Image Processing On Line, 2012), as OpenCV computes them.

They stand in for those of M-LSD (`mlsd`), which needs a network and finds fewer, longer lines.
"""

from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator, as_rgb
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@request(resolution=512)
class LSD(Annotator):
    """White lines of one pixel on black."""

    IS_SMOOTH = False
    min_length: float = option(
        20.0, "--min-length", metavar="X", low=0.0, high=4096.0,
        help="length of the shortest segment that is drawn, in pixels at the detection resolution",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import cv2
        import numpy as np

        found = cv2.createLineSegmentDetector().detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
        segments = np.empty((0, 4)) if found is None else found.reshape(-1, 4)      # x_0, y_0, x_1, y_1
        lengths = np.hypot(segments[:, 2] - segments[:, 0], segments[:, 3] - segments[:, 1])
        return as_rgb(drawn(segments[lengths >= self.min_length], image.shape[:2]))


def drawn(segments: "np.ndarray", size: tuple[int, int]) -> "np.ndarray":
    """Return white lines on black, (height, width) uint8, of segments (n, 4): x_0, y_0, x_1, y_1."""
    import cv2
    import numpy as np

    canvas = np.zeros(size, np.uint8)
    for x_0, y_0, x_1, y_1 in np.trunc(segments).astype(int).tolist():
        cv2.line(canvas, (x_0, y_0), (x_1, y_1), 255, 1)
    return canvas
