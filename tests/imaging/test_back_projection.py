"""Back-projection makes an upscaled image agree with the small one."""

import pytest
import torch
import torch.nn.functional as F

from ldm.imaging.back_projection import back_project


def image(height: int, width: int) -> torch.Tensor:
    """Return a smooth image with an edge, (1, 3, height, width) within -0.8..0.8."""
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 5, width), indexing="ij")
    planes = torch.stack([torch.sin(x + y), torch.cos(x * y), (x > 2.2).float() - 0.5])
    return 0.8 * planes[None]


def shrunk(large: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return F.interpolate(large, (height, width), mode="bicubic", antialias=True)


@pytest.mark.parametrize("height, width", [(16, 16), (13, 29), (1, 7)])
def test_the_result_shrinks_to_the_small_image(height, width):
    true = image(4 * height, 4 * width)
    small = shrunk(true, height, width).clamp(-1, 1)
    made = (true + 0.3 * torch.sin(torch.arange(4.0 * width) / 9) - 0.1).expand(2, -1, -1, -1)
    result = back_project(made, small)
    assert result.shape == made.shape and result.abs().max() <= 1
    before, after = ((shrunk(x, height, width) - small).abs().max() for x in (made, result))
    assert before > 0.15 and after < 0.02


def test_a_shift_of_colour_goes_and_detail_stays():
    true = image(64, 64)
    small = shrunk(true, 16, 16)
    result = back_project(true + 0.15, small)
    assert (result - true).abs().max() < 0.02
    interpolated = F.interpolate(small, (64, 64), mode="bicubic")
    assert (result - true).square().mean() < 0.02 * (interpolated - true).square().mean()


def test_a_faithful_image_stays():
    true = image(32, 48)
    assert torch.allclose(back_project(true, shrunk(true, 8, 12)), true, atol=1e-6)
