"""Images that can be computed: coloured discs on coloured ground, to test and to try a configuration."""

from typing import Any

import torch

from demo.extra_inputs import check_extra_input, make_extra_input

COLOURS = {
    "red": (0.9, 0.1, 0.1),
    "green": (0.1, 0.7, 0.2),
    "blue": (0.15, 0.25, 0.9),
    "yellow": (0.95, 0.85, 0.1),
    "black": (0.05, 0.05, 0.05),
    "white": (0.95, 0.95, 0.95),
}


class Discs:
    """Batches of "a {colour} disc on {colour}" with random place and size.

    Args:
        size: side of the images.
        count: distinct images; 0 draws without end. 1 is for overfitting.
        extra_input: mask, depth or small (demo.extra_inputs), or hint, the disc's outline, white on black: a
            third part of each batch; None: no such part.
    """

    def __init__(self, size: int = 32, count: int = 0, extra_input: str | None = None) -> None:
        check_extra_input(extra_input)
        self.extra_input = extra_input
        self.size = size
        self.count = count

    def __len__(self) -> int:
        return self.count or 1000

    def batch(self, generator: torch.Generator, batch_size: int) -> tuple[Any, ...]:
        """Return images (b, 3, size, size) in [-1, 1], captions, and extra inputs if asked."""
        draws = torch.rand(batch_size, 5, generator=generator)
        if self.count:
            fixed = torch.rand(self.count, 5, generator=torch.Generator().manual_seed(0))
            draws = fixed[(draws[:, 0] * self.count).long()]
        names = list(COLOURS)
        table = torch.tensor(list(COLOURS.values())) * 2 - 1  # (n, 3)
        ground = (draws[:, 0] * len(names)).long()
        disc = (ground + 1 + (draws[:, 1] * (len(names) - 1)).long()) % len(names)  # never that of the ground
        centre = 0.3 + 0.4 * draws[:, 2:4]
        radius = 0.15 + 0.15 * draws[:, 4]
        axis = (torch.arange(self.size) + 0.5) / self.size
        dx = axis[None, None, :] - centre[:, 0, None, None]
        dy = axis[None, :, None] - centre[:, 1, None, None]
        depth = ((radius[:, None, None] - (dx**2 + dy**2).sqrt()) * self.size)[:, None]  # pixels from the rim
        inside = (depth + 0.5).clamp(0, 1)
        images = inside * table[disc][:, :, None, None] + (1 - inside) * table[ground][:, :, None, None]
        captions = [f"a {names[d]} disc on {names[g]}" for d, g in zip(disc, ground, strict=True)]
        if self.extra_input is None:
            return images, captions
        if self.extra_input == "hint":
            outline = (self.size / 48 + 1 - depth.abs()).clamp(0, 1)
            return images, captions, {"hint": outline.expand(-1, 3, -1, -1)}
        return images, captions, make_extra_input(self.extra_input, images, inside, generator)
