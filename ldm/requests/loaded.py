"""What a request holds once its files are read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class InputArray:
    """An image, a mask, a depth map or latents, and where they came from. Two are equal by their digest.

    Args:
        values: an image (h, w, 3 or 4) uint8; a mask (h, w) float32, 1 where to repaint; inverse depth
            (h, w) float32; latents (n, c, h, w) as a torch.Tensor.
        sha256: of the file, or of the values where there is none.
        file: as it was given; None for values from memory.
        about: what else is known, such as the size of the image that latents are of.
    """

    values: "np.ndarray | Any"
    sha256: str
    file: str | None = None
    about: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InputArray) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)
