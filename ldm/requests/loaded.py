"""The input files of a request, once they are read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class InputArray:
    """An image, a mask, a depth map or latents, and the file they came from.

    Two are equal if their digests are.

    Args:
        values: an image (h, w, 3 or 4) uint8; a mask (h, w) float32, 1 to repaint, and a depth map (h, w)
            float32, before the options of the request change them; latents (n, c, h, w) as a torch.Tensor.
        sha256: of the file, or of the values if there is no file.
        file: path as it was given; None for values from memory.
        about: further information: the colour profile of an image, the digest of the image whose transparency
            a mask is, or the image size that latents belong to.
    """

    values: "np.ndarray | Any"
    sha256: str
    file: str | None = None
    about: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InputArray) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)
