"""Line segments by M-LSD (arXiv 2106.00186; `ldm.models.mlsd`), as on ControlNet's page hough2image.

    middle: where the network's score is the largest of 3x3 pixels, above `score`, and among the best 200
    segment: from the middle + one displacement to the middle + another; longer than `length`

`lsd` finds segments without a network.
"""

from typing import TYPE_CHECKING

from ldm.annotators.base import NetworkAnnotator, as_rgb
from ldm.annotators.lsd import drawn
from ldm.annotators.weights import fill, read_tensors
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

MOST = 200          # segments
STRIDE = 2          # of the network's maps


@request(resolution=512)
class MLSD(NetworkAnnotator):
    """White lines of one pixel on black."""

    IS_SMOOTH = False
    NETWORK, FILES = "M-LSD", ("mlsd_large_512_fp32.pth",)
    score: float = option(
        0.1, "--score", "--value-threshold", metavar="X", low=0.01, high=2.0,
        help="score above which a segment is drawn",
    )  # fmt: skip
    length: float = option(
        0.1, "--length", "--distance-threshold", metavar="X", low=0.01, high=20.0,
        help="length above which a segment is drawn, in pixels of the network's map, of half the size",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import numpy as np

        plane = np.ones((*image.shape[:2], 1))
        maps = self.run(np.concatenate([image, plane], axis=2) / 127.5 - 1)[0][0]
        return as_rgb(drawn(segments(maps, self.score, self.length), image.shape[:2]))

    def load(self, path: "Path") -> "nn.Module":
        from ldm.devices import on_meta
        from ldm.models import mlsd

        with on_meta():
            network = mlsd.MLSD()
        fill(network, read_tensors(path), path, f"{self.NETWORK} ({self.FILES[0]})")
        return network


def segments(maps: "Tensor", score: float, length: float) -> "np.ndarray":
    """Return the segments (n, 4) in the maps (9, h, w) of the network: x_0, y_0, x_1, y_1 in image pixels."""
    import torch
    import torch.nn.functional as F

    scores = maps[0].sigmoid()
    is_largest = F.max_pool2d(scores[None], 3, stride=1, padding=1)[0] == scores
    best, places = torch.where(is_largest, scores, 0).flatten().topk(min(MOST, scores.numel()))
    start, end = maps[1:5].flatten(1)[:, places].reshape(2, 2, -1)      # x and y, of each place
    middle = torch.stack([places % maps.shape[2], places // maps.shape[2]])
    kept = (best > score) & ((start - end).square().sum(dim=0).sqrt() > length)
    return STRIDE * torch.cat([middle + start, middle + end]).T[kept].numpy()
