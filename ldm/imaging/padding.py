"""Process images of any size with a network that requires multiples: pad before it, crop after it.

A frame centres the image in the next larger size that fits:

    frame = Frame.around(height=427, width=640, multiple=64)     # 448 x 640 inside
    frame.crop(decode(encode(frame.pad(images))))                # 427 x 640 again

Padding mirrors the image without repeating the edge pixel, several times if needed, so that the network sees
no hard border.

For a network that enlarges its input (the 4x upscaler), `scale` is its factor: the frame describes the small
image, and `crop` takes images that are `scale` times as large.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Frame:
    """An image of height x width inside inner_height x inner_width; the result is `scale` times as large."""

    height: int
    width: int
    inner_height: int
    inner_width: int
    scale: int = 1

    @classmethod
    def around(cls, height: int, width: int, multiple: int, scale: int = 1) -> "Frame":
        """Return the smallest frame whose sides are multiples of `multiple`."""
        inner = (math.ceil(side / multiple) * multiple for side in (height, width))
        return cls(height, width, *inner, scale)

    @property
    def top(self) -> int:
        return (self.inner_height - self.height) // 2

    @property
    def left(self) -> int:
        return (self.inner_width - self.width) // 2

    def pad(self, images: torch.Tensor) -> torch.Tensor:
        """Extend (n, c, height, width) to the inner size by mirroring."""
        rows = _mirrored(self.height, self.top, self.inner_height).to(images.device)
        columns = _mirrored(self.width, self.left, self.inner_width).to(images.device)
        return images.index_select(-2, rows).index_select(-1, columns)  # (n, c, inner_height, inner_width)

    def crop(self, images: torch.Tensor) -> torch.Tensor:
        """Crop (n, c, scale * inner_height, scale * inner_width) to (n, c, scale * height, scale * width)."""
        top, left, height, width = (self.scale * x for x in (self.top, self.left, self.height, self.width))
        return images[..., top : top + height, left : left + width]


def _mirrored(length: int, before: int, inner: int) -> torch.Tensor:
    """Return the source position of every inner position: ... 2 1 0 1 2 ... n-2 n-1 n-2 ..."""
    position = torch.arange(inner) - before
    if length == 1:
        return torch.zeros_like(position)
    period = 2 * (length - 1)
    position = position.abs() % period
    return torch.minimum(position, period - position)
