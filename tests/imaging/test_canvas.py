"""Windows of an image that is extended: every new pixel is painted once, next to known ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.imaging.canvas import Margins, boxes, windows, without_rim
from ldm.imaging.masks import Box

AMOUNT = st.integers(0, 150)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 150), st.integers(1, 150), st.builds(Margins, AMOUNT, AMOUNT, AMOUNT, AMOUNT),
    st.integers(16, 130),
)  # fmt: skip
def test_every_new_pixel_is_painted_once_by_a_window_that_sees_enough(height, width, margins, side):
    if not any(margins):
        margins = Margins(left=1)
    tall, wide = margins.canvas(height, width)
    painted = np.zeros((tall, wide), int)
    painted[margins.inner(height, width).part] = 1
    for box, new in windows(height, width, margins, side):
        assert 0 <= box.top < box.bottom <= tall and 0 <= box.left < box.right <= wide
        assert max(box.height, box.width) <= side and new.shape == (box.height, box.width)
        assert new.any() and np.array_equal(painted[box.part] == 0, new), "what is not new is known"
        # Across the new strip at least half a window is known, or all of the image.
        known = ~new
        rows, columns = known.any(1).sum(), known.any(0).sum()
        assert rows >= min(side - side // 2, height) and columns >= min(side - side // 2, width)
        painted[box.part] += new
    assert (painted == 1).all()


@pytest.mark.parametrize(
    ("size", "margins", "expected"),
    [
        ((64, 64), Margins(right=64), [Box(0, 0, 64, 128)]),  # all at once
        ((64, 64), Margins(32, 32, 32, 32), [Box(0, 0, 128, 128)]),
        ((64, 64), Margins(left=65), [Box(0, 33, 64, 129), Box(0, 0, 64, 128)]),  # 32 and 33
        ((128, 128), Margins(right=32), [Box(0, 32, 128, 160)]),
        ((128, 128), Margins(right=128), [Box(0, 64, 128, 192), Box(0, 128, 128, 256)]),
        (  # the side is longer than a window: two windows, evenly spaced
            (200, 128),
            Margins(left=64),
            [Box(0, 0, 128, 128), Box(72, 0, 200, 128)],
        ),
        (  # corners come with what is above and below
            (128, 128),
            Margins(left=16, up=16),
            [Box(0 + 16, 0, 144, 128), Box(0, 0, 128, 128), Box(0, 16, 128, 144)],
        ),
    ],
)
def test_where_windows_of_128_lie(size, margins, expected):
    assert boxes(*size, margins, 128) == expected


def test_windows_along_a_side_overlap_by_a_quarter_at_least():
    tops = [(box.top, box.bottom) for box in boxes(1000, 128, Margins(left=10), 128)]
    assert tops[0][0] == 0 and tops[-1][1] == 1000
    assert all(first[1] - second[0] >= 32 for first, second in zip(tops, tops[1:], strict=False))


@pytest.mark.parametrize(
    ("size", "margins", "side", "says"),
    [
        ((8, 8), Margins(), 64, "left 0, right 0, up 0, down 0; expected pixels to add, 0 or more, not all"),
        ((8, 8), Margins(left=9, down=-1), 64, "down -1; expected pixels to add, 0 or more"),
        ((8, 8), Margins(left=16_377), 64, "8x8 to 16385x8: at most 16384 pixels per side and 64 megapixels"),
        ((8000, 7000), Margins(left=1001), 64, "8001x8000"),
        ((8, 8), Margins(left=8), 15, "a window of 15 pixels; expected 16 or more"),
    ],
)
def test_what_cannot_be_is_refused(size, margins, side, says):
    with pytest.raises(InputError, match=says):
        boxes(*size, margins, side)


def scene(height: int = 72, width: int = 64) -> torch.Tensor:
    """Soft colours, (1, 3, h, w) in -1..1."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 2, width), indexing="ij")
    return 0.6 * torch.stack([torch.sin(x + y), torch.cos(2 * x - y), torch.sin(y)])[None]


SIDES = {
    "left": (Margins(left=9), lambda x, k: x[..., k]),
    "right": (Margins(right=9), lambda x, k: x[..., -1 - k]),
    "up": (Margins(up=9), lambda x, k: x[..., k, :]),
    "down": (Margins(down=9), lambda x, k: x[..., -1 - k, :]),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("amount", [-0.9, -0.15, 0.3])
def test_a_rim_is_taken_off_the_sides_that_are_extended_alone(side, depth, amount):
    margins, row = SIDES[side]
    clean = scene()
    image = clean.clone()
    for k in range(depth):
        row(image, k).add_(amount / (k + 1))
    for others, _ in SIDES.values():
        seen = without_rim(image.clamp(-1, 1), others)
        off = (seen - clean.clamp(-1, 1)).abs()
        if others == margins:
            assert max(float(row(off, k).mean()) for k in range(depth)) < 0.2 * abs(amount) + 0.02
        else:
            assert float(row(off, 0).max()) > 0.5 * min(abs(amount), 0.4)


def test_what_is_no_rim_stays():
    everywhere = Margins(9, 9, 9, 9)
    grain = torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    y, x = torch.meshgrid(torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 60), indexing="ij")
    vignette = (0.8 - 0.7 * (x**2 + y**2)).expand(1, 3, 60, 60)
    ramp = (0.9 * x).expand(1, 3, 60, 60)
    for image in (scene(), vignette, ramp, torch.full((1, 3, 30, 30), -1.0), torch.ones(1, 3, 5, 7)):
        assert (without_rim(image, everywhere) - image).abs().max() < 0.08
    changed = (without_rim(grain, everywhere) - grain).abs()
    assert changed.mean() < 0.02, "the median of texture is not its edge"
    blot = torch.zeros(1, 3, 60, 60)
    blot[..., 20:28, -2:] = 1.0  # a part of the scene, shorter than what is measured
    assert torch.equal(without_rim(blot, everywhere), blot)
