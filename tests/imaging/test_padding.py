"""Any size goes in and the same size comes out."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ldm.imaging.padding import Frame

sides = st.integers(1, 200)


@given(sides, sides, st.sampled_from([8, 16, 64]))
def test_crop_undoes_pad_exactly(height, width, multiple):
    frame = Frame.around(height, width, multiple)
    images = torch.rand(2, 3, height, width)
    padded = frame.pad(images)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert padded.shape[-2] - height < multiple and padded.shape[-1] - width < multiple
    assert torch.equal(frame.crop(padded), images)


@given(sides, sides)
def test_padding_mirrors_as_numpy_does(height, width):
    frame = Frame.around(height, width, 64)
    image = torch.rand(height, width)
    around = (
        (frame.top, frame.inner_height - height - frame.top),
        (frame.left, frame.inner_width - width - frame.left),
    )
    assert np.array_equal(
        frame.pad(image[None, None])[0, 0].numpy(), np.pad(image.numpy(), around, "reflect")
    )


def test_a_fitting_size_is_left_alone():
    frame = Frame.around(64, 128, 64)
    images = torch.rand(1, 3, 64, 128)
    assert torch.equal(frame.pad(images), images) and torch.equal(frame.crop(images), images)
