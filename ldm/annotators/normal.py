"""Surface normals from estimated depth, as on ControlNet's page normal2image.

    n = (dx d, dy d, a) / |.|        dx, dy: Sobel 3x3 of the inverse depth d, per pixel; a = 2 pi
    dx = dy = 0 where (d - min d) / (max d - min d) < background
    map = 127.5 n + 127.5, truncated

The channels of the map are z, y, x: that is how the network sees normals. The page shows x, y, z.
"""

import math
from typing import TYPE_CHECKING

from ldm.annotators.depth import Depth
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@request()
class Normal(Depth):
    """Colours of the direction in which surfaces face."""

    alpha: float = option(
        2 * math.pi, "--alpha", metavar="X", low=0.1, high=20.0, default_text="2 pi",
        help="length of the normal towards the viewer, in units of depth per pixel; smaller is steeper",
    )  # fmt: skip
    background: float = option(
        0.4, "--background", "--bg-threshold", metavar="X", low=0.0, high=1.0,
        help="share of the depth range, from the farthest, that is flat background",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import cv2
        import numpy as np

        depth = self.inverse_depth(image)
        extent = depth.max() - depth.min()
        is_far = (depth - depth.min()) / (extent or np.float32(1)) < self.background
        slopes = (cv2.Sobel(depth, cv2.CV_32F, *axis, ksize=3) for axis in ((1, 0), (0, 1)))
        x, y = (np.where(is_far, np.float32(0), slope) for slope in slopes)
        normal = np.stack([np.full_like(x, self.alpha), y, x], axis=2)
        normal /= np.sqrt((normal**2).sum(axis=2, keepdims=True))
        return (normal * 127.5 + 127.5).clip(0, 255).astype(np.uint8)
