"""What was not to be painted comes back byte for byte."""

import numpy as np
import pytest

from ldm.imaging import masks
from ldm.imaging.paste import Paste

RANDOM = np.random.default_rng(0)


def image(channels: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (7, 5, channels), dtype=np.uint8)


def test_bytes_come_back_where_the_weight_is_0_and_go_where_it_is_1():
    original, painted = image(3), image(3)
    weight = (RANDOM.random((7, 5)) > 0.5).astype(np.float32)
    result = Paste(original, weight).onto(painted)
    assert result.dtype == np.uint8
    assert np.array_equal(result[weight == 0], original[weight == 0])
    assert np.array_equal(result[weight == 1], painted[weight == 1])


def test_between_them_is_a_mixture():
    original, painted = np.full((1, 1, 3), 100, np.uint8), np.full((1, 1, 3), 203, np.uint8)
    assert Paste(original, np.full((1, 1), 0.25, np.float32)).onto(painted).tolist() == [[[126, 126, 126]]]


def test_alpha_stays_and_paint_is_opaque():
    original, painted = image(4), image(3)
    weight = np.zeros((7, 5), np.float32)
    weight[2:4] = 1
    result = Paste(original, weight).onto(painted)
    assert np.array_equal(result[weight == 0], original[weight == 0])
    assert np.array_equal(result[2:4, :, :3], painted[2:4]) and (result[2:4, :, 3] == 255).all()


def test_a_cut_out_with_soft_edges_painted_where_it_is_transparent_becomes_opaque():
    original, painted = image(4), image(3)
    weight = 1 - original[:, :, 3].astype(np.float32) / 255
    result = Paste(original, weight).onto(painted)
    expected = weight[:, :, None] * painted + (1 - weight[:, :, None]) * original[:, :, :3]
    assert (result[:, :, 3] == 255).all()
    assert np.abs(result[:, :, :3] - expected).max() <= 0.5001


def test_hidden_colours_do_not_shine_through_a_soft_edge():
    original, painted = (
        np.array([[[0, 255, 0, 0], [0, 200, 0, 255]]], np.uint8),
        np.full((1, 2, 3), 100, np.uint8),
    )
    result = Paste(original, np.full((1, 2), 0.5, np.float32)).onto(painted)
    assert result.tolist() == [[[100, 100, 100, 255], [50, 150, 50, 255]]]


@pytest.mark.parametrize("blur", [1, 4, 8])
def test_a_transparent_hole_that_is_painted_becomes_opaque_whatever_the_blur(blur):
    original, painted = np.full((24, 24, 4), 200, np.uint8), np.full((24, 24, 3), 50, np.uint8)
    original[..., 3] = 255
    original[6:18, 6:18, 3] = 0
    original[5, 6:18, 3] = 100  # a soft edge
    mask = masks.from_alpha(original)
    result = Paste(original, masks.feather(mask, blur)).onto(painted)
    assert (result[..., 3] == 255).all() and (result[6:18, 6:18, :3] == 50).all()
    assert np.array_equal(result[mask == 0], original[mask == 0])
    grown = Paste(original, masks.feather(masks.grown(mask, 4), blur)).onto(painted)
    assert (grown[..., 3] == 255).all() and 50 < grown[1, 12, 0] < 200
