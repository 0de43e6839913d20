"""A segmentation map that is given: its colours must be those of ADE20K's 150 classes (arXiv 1608.05442).

`ade20k.json` lists the colours in the order of the classes; it is the palette that ControlNet's seg models
were trained with. Black marks pixels without a class.
"""

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.annotators.base import Annotator
from ldm.errors import InputError
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np


@cache
def palette() -> "np.ndarray":
    """Return the colours (151, 3) uint8 of the classes, and black."""
    import numpy as np

    colours = json.loads(Path(__file__).with_name("ade20k.json").read_text())
    return np.array([*colours, [0, 0, 0]], np.uint8)


@request()
class Seg(Annotator):
    """The map itself, checked; resized, it keeps its colours.

    Raises:
        InputError: a colour is not in the palette, and `nearest` is not set.
    """

    READS_MAPS, IS_SMOOTH = True, False
    nearest: bool = option(
        False, "--nearest",
        help="replace colours by the nearest of the palette, for maps saved as JPEG or drawn with soft edges",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import numpy as np

        codes = image.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
        codes, where = np.unique(codes, return_inverse=True)
        colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1).astype(np.uint8)
        nearest, others = _nearest(colours)
        if others.any() and not self.nearest:
            example = ",".join(map(str, colours[others][0]))
            raise InputError(
                f"{others.sum()} of {len(colours)} colours are of no ADE20K class, such as RGB {example}; "
                "expected a segmentation map: save it as PNG, or use --nearest"
            )
        return nearest[where.reshape(image.shape[:2])]


def _nearest(colours: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """Return the nearest colours (n, 3) of the palette, and which of (n, 3) are not in it, (n,)."""
    import numpy as np

    known, chunk = palette().astype(np.int32), 4096         # so that photographs take little memory
    nearest, others = np.empty_like(colours), np.empty(len(colours), bool)
    for at in range(0, len(colours), chunk):
        part = slice(at, at + chunk)
        distance = ((colours[part, None].astype(np.int32) - known) ** 2).sum(axis=2)
        nearest[part] = palette()[distance.argmin(axis=1)]
        others[part] = distance.min(axis=1) > 0
    return nearest, others
