"""Between 8 bits and -1..1."""

import numpy as np
import pytest
import torch

from ldm.errors import InputError
from ldm.imaging.colour import BLACK, from_uint8, is_black, to_uint8

RAMP = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)


def test_bytes_map_onto_minus_one_to_one():
    images = from_uint8(RAMP)
    assert images.shape == (1, 3, 16, 16) and images.dtype == torch.float32
    assert images.min() == -1 and images.max() == 1
    assert from_uint8(RAMP[0]).shape == (1, 3, 16, 16)


def test_the_way_back_truncates():
    just_below = torch.tensor([-2.0, -1.0, 0.0, 1 - 1e-3, 1.0, 7.0]).reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_uint8(just_below)[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


def test_there_and_back_is_at_most_one_step_lower():
    lost = RAMP.astype(int) - to_uint8(from_uint8(RAMP))
    assert lost.min() >= 0 and lost.max() <= 1


def test_half_precision_images_are_converted_in_float32():
    half = torch.linspace(-1, 1, 999, dtype=torch.float16).reshape(1, 1, 1, 999).expand(1, 3, 1, 999)
    assert np.array_equal(to_uint8(half), to_uint8(half.float()))


def test_black_is_what_no_eye_tells_from_it():
    image = np.zeros((4, 5, 3), np.uint8)
    assert is_black(image)
    image[3, 4, 1] = BLACK
    assert is_black(image)
    image[3, 4, 1] = BLACK + 1
    assert not is_black(image)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3), np.float32)],
    ids=["grey", "alpha", "float"],
)
def test_what_is_no_image_of_8_bit_rgb_is_refused(image):
    with pytest.raises(InputError, match=r"expected \(height, width, 3\) uint8"):
        from_uint8(image)
