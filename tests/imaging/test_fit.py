"""The four ways to fit an image to a size: sizes for any image, pixels where they are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import InputError
from ldm.imaging.fit import FITS, Fit, choose_fit

QUICK = settings(max_examples=40, derandomize=True, deadline=None)
sides = st.integers(1, 90)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def target(height: int = 60, width: int = 80) -> np.ndarray:
    """An image whose red is the row and green the column, which shows its geometry."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0], image[:, :, 1] = np.mgrid[:height, :width]
    return image


@QUICK
@given(sides, sides, sides, sides, st.sampled_from(["crop", "pad", "stretch"]), st.sampled_from([3, 4]))
def test_the_size_asked_for_comes_out(own_height, own_width, height, width, mode, channels):
    image = noise(own_height, own_width, channels)
    fitted = choose_fit(image, mode, height, width).of(image, 64)
    assert fitted.shape == (height, width, channels) and fitted.dtype == np.uint8


@QUICK
@given(sides, sides, st.sampled_from([8, 16, 64]), st.sampled_from(["crop", "pad", "stretch"]))
def test_without_a_size_it_is_the_next_that_the_model_takes(height, width, multiple, mode):
    image = noise(height, width)
    fitted = choose_fit(image, mode).of(image, multiple)
    for side, own in zip(fitted.shape, (height, width), strict=False):
        assert side % multiple == 0 and side > 0
        assert 0 <= side - own < multiple if mode == "pad" else side <= max(own, multiple)
        assert mode == "pad" or side > own - multiple
    if mode == "pad":
        top, left = (fitted.shape[0] - height) // 2, (fitted.shape[1] - width) // 2
        assert np.array_equal(fitted[top : top + height, left : left + width], image), "not scaled"


@pytest.mark.parametrize("mode", FITS)
def test_an_image_of_the_right_size_is_left_alone(mode):
    image = noise(64, 128)
    assert np.array_equal(choose_fit(image, mode).of(image, 64), image)
    assert np.array_equal(choose_fit(image, mode, 64, 128).of(image, 16), image)


@QUICK
@given(sides, sides, st.sampled_from(["crop", "pad", "stretch"]))
def test_a_constant_image_stays_constant(height, width, mode):
    image = np.full((13, 29, 3), (10, 130, 250), np.uint8)
    assert np.unique(choose_fit(image, mode, height, width).of(image, 8).reshape(-1, 3), axis=0).tolist() == [
        [10, 130, 250]
    ]


@pytest.mark.parametrize("size", [(191, 127), (127, 191), (512, 768), (450, 1000), (64, 65)])
def test_stretch_is_what_the_reference_script_does(size):
    """Its words: w, h = map(lambda x: x - x % 64, (w, h)); image.resize((w, h), Lanczos)."""
    height, width = size
    image = noise(height, width)
    theirs = Image.fromarray(image).resize((width - width % 64, height - height % 64), Image.LANCZOS)
    assert np.array_equal(choose_fit(image, "stretch").of(image, 64), np.asarray(theirs))


def test_a_side_below_the_multiple_does_not_vanish():
    image = noise(30, 100)
    assert choose_fit(image, "stretch").of(image, 64).shape == (64, 64, 3)
    assert choose_fit(image, "crop").of(image, 64).shape == (64, 64, 3)


def test_crop_cuts_the_middle_and_keeps_the_shape_of_things():
    wide = choose_fit(target(), "crop", 60, 40).of(target(), 64)
    assert np.array_equal(wide, target()[:, 20:60]), "no scaling is needed here, so none is done"
    half = choose_fit(target(), "crop", 20, 20).of(target(), 64)  # 60 rows to 20, as many columns
    assert np.abs(np.diff(half[5:-5, :, 0].astype(float).mean(axis=1)) - 3).max() < 0.2
    assert np.abs(np.diff(half[:, 5:-5, 1].astype(float).mean(axis=0)) - 3).max() < 0.2
    assert abs(half[:, :, 1].mean() - 39.5) < 0.5 and abs(half[:, :, 0].mean() - 29.5) < 0.5


def test_pad_keeps_all_of_the_image_and_mirrors_the_rest():
    image = noise(20, 40)
    padded = choose_fit(image, "pad", 40, 40).of(image, 64)
    assert np.array_equal(padded[10:30], image)
    assert np.array_equal(padded, np.pad(image, ((10, 10), (0, 0), (0, 0)), "reflect"))
    shrunk = choose_fit(target(), "pad", 40, 40).of(target(), 64)  # 60 x 80 becomes 30 x 40, 5 rows beyond
    assert np.abs(np.diff(shrunk[10:30, :, 0].astype(float).mean(axis=1)) - 2).max() < 0.2
    assert np.array_equal(shrunk[4], shrunk[6])


def test_stretch_ignores_the_shape():
    stretched = choose_fit(target(), "stretch", 60, 40).of(target(), 64)
    assert np.abs(np.diff(stretched[:, 5:-5, 1].astype(float).mean(axis=0)) - 2).max() < 0.2


def test_what_is_meant_without_a_word():
    image = noise(60, 80)
    assert choose_fit(image) == Fit("exact")
    assert choose_fit(image, None, 30, 30) == Fit("crop", (30, 30))
    assert choose_fit(image, None, 30) == Fit("crop", (30, 40)), "the other side keeps the shape"
    assert choose_fit(image, "pad", None, 20) == Fit("pad", (15, 20))
    assert choose_fit(noise(1, 90), "pad", None, 10).size == (1, 10)
    assert choose_fit(image, "exact", 60, 80).of(image, 64) is image


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("exact", 60, 81), "80x60.*81x60.*exact"),
        (("exact", 61), "80x60"),
        (("fill",), "unknown fit 'fill'"),
        (("crop", None, 16_000), None),
        (("crop", 16_000), "21333x16000"),
    ],
)
def test_what_cannot_be_is_refused(arguments, says):
    image = noise(60, 80)
    if says is None:
        assert choose_fit(image, *arguments).size == (12_000, 16_000)
        return
    with pytest.raises(InputError, match=says) as error:
        choose_fit(image, *arguments)
    assert "\n" not in str(error.value)
