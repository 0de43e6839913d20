"""The grid of all images, against torchvision's."""

import numpy as np
import pytest
import torch
import torchvision

from ldm.imaging.grid import make_grid


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("columns", [1, 2, 3, 8])
def test_grid_is_that_of_torchvision(count, columns):
    images = np.random.default_rng(count).integers(0, 256, (count, 5, 7, 3), np.uint8)
    expected = torchvision.utils.make_grid(
        torch.from_numpy(images).permute(0, 3, 1, 2), nrow=columns, padding=2
    )
    assert np.array_equal(make_grid(list(images), columns), expected.permute(1, 2, 0).numpy())


def test_four_images_of_256_pixels_make_518():
    assert make_grid([np.zeros((256, 256, 3), np.uint8)] * 4, 2).shape == (518, 518, 3)
