"""Masks: read, grown, faded out, boxed, refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import InputError
from ldm.imaging import masks
from ldm.imaging.files import open_image
from ldm.imaging.masks import Box

RANDOM = np.random.default_rng(0)


def soft(height: int, width: int) -> np.ndarray:
    values = RANDOM.random((height, width)).astype(np.float32)
    return np.where(RANDOM.random((height, width)) < 0.8, 0, values).astype(np.float32)


def squared_distances(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y[:, :, None, None] - y) ** 2 + (x[:, :, None, None] - x) ** 2


SIZES = {"height": st.integers(1, 23), "width": st.integers(1, 23), "pixels": st.integers(1, 40)}


@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_growing_takes_the_highest_within_a_disc_and_shrinking_the_lowest(height, width, pixels):
    mask, near = soft(height, width), squared_distances(height, width) <= pixels**2
    assert np.array_equal(masks.grown(mask, pixels), np.where(near, mask, 0).max((2, 3)))
    lowest = 1 - np.where(near, 1 - mask, 0).max((2, 3))
    assert np.array_equal(masks.grown(mask, -pixels), lowest), "the image's own border moves nothing"


@settings(max_examples=40, deadline=None)
@given(**SIZES)
def test_the_distance_is_euclids(height, width, pixels):
    inside = RANDOM.random((height, width)) < 0.95
    expected = np.where(~inside, squared_distances(height, width), np.inf).min((2, 3)) ** 0.5
    got = masks.distance(inside, pixels)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.minimum(expected, pixels + 1), rtol=1e-6)


def test_a_blur_fades_inwards_evenly_and_never_reaches_outside():
    mask = np.zeros((40, 60), np.float32)
    mask[8:32, 10:50] = 1
    weight = masks.feather(mask, 5)
    assert (weight[mask == 0] == 0).all() and (weight <= mask).all()
    assert (weight[mask == 1] > 0).all(), "nothing of the mask is lost"
    np.testing.assert_allclose(weight[20, 10:17], [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1], rtol=1e-6)
    assert masks.feather(mask, 0) is mask
    whole = np.ones((5, 7), np.float32)
    assert np.array_equal(masks.feather(whole, 9), whole), "the border of the image is not one of the mask"


def test_a_half_grey_mask_stays_half_grey():
    mask = np.full((9, 9), 0.5, np.float32)
    assert masks.binarize(mask).all() and np.array_equal(masks.feather(mask, 3), mask)


def test_white_is_painted_whatever_holds_it():
    image = np.array(
        [[[255, 255, 255, 255], [0, 0, 0, 255], [255, 255, 255, 0], [255, 255, 255, 128]]], np.uint8
    )
    mask = masks.from_image(image)
    assert mask.dtype == np.float32 and mask[0, :3].tolist() == [1, 0, 0] and masks.binarize(mask)[0, 3]
    assert masks.from_image(image[..., :3])[0].tolist() == [1, 0, 1, 1]
    assert masks.from_alpha(image)[0, :3].tolist() == [0, 0, 1]
    assert masks.prepared(mask, invert=True)[0].tolist() == [0, 1, 1, 1 - mask[0, 3]]


def cut_out(colour, ground=(0, 0, 0, 0)) -> np.ndarray:
    image = np.tile(np.array(ground, np.uint8), (16, 16, 1))
    image[4:12, 4:12] = (*colour, 255)
    return image


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (cut_out((200, 40, 30)), "in colour"),
        (cut_out((40, 90, 200), (255, 255, 255, 0)), "in colour"),
        (cut_out((200, 40, 30), (0, 0, 0, 255)), "in colour"),
        (cut_out((120, 120, 120)), "100 % of its opaque part is not white"),
        (cut_out((0, 0, 0), (255, 255, 255, 0)), "100 % of its opaque part is not white"),
        (cut_out((150, 140, 150)), "not white"),
    ],
    ids=["cut-out", "on hidden white", "on black", "grey", "black", "nearly grey"],
)
def test_what_is_no_mask_is_refused_with_what_to_do(image, says):
    with pytest.raises(InputError, match=f"{says}.*paint the part to repaint white"):
        masks.from_image(image)


@pytest.mark.parametrize("colour", [(255, 255, 255), (240, 236, 230)])
def test_a_white_shape_on_transparency_is_a_mask(colour):
    assert np.array_equal(masks.binarize(masks.from_image(cut_out(colour))), cut_out(colour)[..., 3] > 0)


def test_a_photograph_in_grey_is_a_mixture():
    grey = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 4, 3))
    assert np.array_equal(masks.from_image(grey)[:, 0], np.arange(256, dtype=np.float32) / 255)


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "P", "RGB", "RGBA", "LA", "CMYK"])
def test_masks_of_every_kind_of_file_mean_the_same(tmp_path, mode):
    grey = np.zeros((4, 6), np.uint8)
    grey[1:3, 2:5] = 255
    image = Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "RGBA":  # white strokes on nothing
        image = Image.merge("RGBA", [Image.new("L", image.size, 255)] * 3 + [image])
    else:
        image = image.convert(mode)
    file = tmp_path / ("mask.tif" if mode == "CMYK" else "mask.png")
    image.save(file)
    mask = masks.from_image(np.asarray(open_image(file, alpha=True)))
    assert np.array_equal(mask, (grey / 255).astype(np.float32))


def test_what_is_no_mask_of_the_image_is_refused():
    with pytest.raises(InputError, match="the mask is 5x4 and the image is 4x5"):
        masks.check(np.zeros((4, 5), np.float32), 5, 4)
    with pytest.raises(InputError, match=r"outside 0\.\.1"):
        masks.check(np.full((4, 5), 255, np.float32), 4, 5)
    with pytest.raises(InputError, match=r"outside 0\.\.1"):
        masks.check(np.full((4, 5), np.nan, np.float32), 4, 5)
    with pytest.raises(InputError, match="nothing to repaint.*--invert-mask"):
        masks.check_paints(np.zeros((4, 5), np.float32))
    with pytest.raises(InputError, match="nothing to repaint.*maximum is 49 %"):
        masks.check_paints(np.full((4, 5), 0.49, np.float32))
    with pytest.raises(InputError, match="at most 1024"):
        masks.grown(np.zeros((4, 5), np.float32), 1025)


def test_boxes():
    mask = np.zeros((30, 50), np.float32)
    mask[4:6, 10:20] = 0.1
    assert masks.box(mask) == Box(4, 10, 6, 20)
    box = masks.box(mask, 7)
    assert box == Box(0, 3, 13, 27) and (box.height, box.width) == (13, 24)
    square = masks.squarer(box, 30, 50)
    assert square == Box(0, 3, 24, 27)
    assert masks.squarer(Box(0, 0, 30, 50), 30, 50) == Box(0, 0, 30, 50)
    assert masks.squarer(Box(25, 0, 30, 40), 30, 50) == Box(0, 0, 30, 40), "as far as the image goes"
    assert mask[box.part].shape == (13, 24)
