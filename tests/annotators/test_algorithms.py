"""Annotators without a network: their maps, at the sizes and with the numbers of ControlNet's pages."""

import cv2
import numpy as np
import pytest
from annotator_cases import aux, photograph

from ldm.annotators import ALIASES, KINDS, find
from ldm.annotators.base import detection_size
from ldm.annotators.seg import palette
from ldm.annotators.shuffle import smooth_noise
from ldm.errors import InputError
from ldm.requests.fields import build, fields_of, form, record

PLAIN = ["canny", "sketch", "scribble", "lsd", "shuffle", "tile", "blur", "threshold"]


def square() -> np.ndarray:
    """Return a white square with sides 16..47 on black, (64, 64, 3)."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[16:48, 16:48] = 255
    return image


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_a_class_with_options_and_help(kind: str):
    cls = find(kind)
    assert cls.__module__ == f"ldm.annotators.{kind}" and cls.__doc__ and cls.annotate.__doc__ != ""
    assert {"resolution"} <= set(fields_of(cls))
    assert [each["help"] for each in form(cls)] == [each.option.help for each in fields_of(cls).values()]
    assert build(cls, record(cls())) == cls()


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_name_rows(alias: str):
    assert find(alias.upper().replace("_", "-")) is find(ALIASES[alias])
    assert alias not in KINDS


def test_an_unknown_kind_is_one_line_with_the_nearest():
    with pytest.raises(InputError, match="unknown annotator 'cany': expected one of .*did you mean 'canny'"):
        find("cany")


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (97, 61), (64, 128)])
def test_maps_have_the_size_of_the_image(kind: str, size: tuple[int, int]):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = find(kind)(resolution=None)(image)
    assert found.shape == image.shape and found.dtype == np.uint8


@pytest.mark.parametrize("kind", PLAIN)
def test_maps_are_found_at_the_detection_resolution(kind: str):
    image = photograph()[:200, :300]
    assert find(kind)(resolution=128).detect(image).shape == (128, 192, 3)
    assert find(kind)(resolution=128)(image).shape == image.shape


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [((480, 640), 512, (512, 704)), ((300, 200), 384, (576, 384)), ((1, 1), 512, (512, 512)),
     ((544, 512), 512, (512, 512)), ((1080, 1920), 384, (384, 704))],
)  # fmt: skip
def test_detection_sizes_are_multiples_of_64(size, resolution: int, expected):
    assert detection_size(size, resolution) == expected


def test_a_strip_is_refused_instead_of_filling_the_memory():
    with pytest.raises(InputError, match="annotated at .*cut the image"):
        find("canny")()(np.zeros((1, 4000, 3), np.uint8))


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), "uint8"), ((4, 4, 3), "float32"), ((0, 4, 3), "u1")])
def test_other_arrays_are_refused(shape: tuple[int, ...], dtype: str):
    image = np.zeros(shape, dtype)
    with pytest.raises(InputError, match="expected .height, width, 3., uint8"):
        find("blur")()(image)


def test_options_are_checked():
    with pytest.raises(InputError, match="low: got 0, expected a whole number from 1 to 255"):
        find("canny")(low=0)
    with pytest.raises(InputError, match="resolution: got 10"):
        find("canny")(resolution=10)


def test_canny_is_opencvs_with_the_thresholds_of_the_page():
    image = photograph()
    large = find("canny")()
    assert (large.low, large.high, large.resolution) == (100, 200, 512)
    assert np.array_equal(large(image)[..., 1], cv2.Canny(image, 100, 200))
    assert (find("canny")(low=20, high=60)(image) > 0).sum() > (large(image) > 0).sum()


def test_scribble_inverts_a_drawing():
    drawing = np.full((4, 4, 3), 255, np.uint8)
    drawing[1, 1], drawing[2, 2] = (126, 255, 255), 127
    found = find("scribble")()(drawing)
    assert found[1, 1].tolist() == [255] * 3 and found.sum() == 3 * 255


def test_threshold_is_that_of_the_darkest_channel():
    image = np.array([[[128, 128, 128], [255, 127, 255]]], np.uint8)
    assert find("threshold")()(image)[0, :, 0].tolist() == [255, 0]


def test_sketch_draws_where_it_is_darker_than_around():
    found = find("sketch")(resolution=None)(255 - square())[..., 0]
    assert found[17, 32] == 255 and found[14, 32] == 0 and found[2, 2] == 0 and found[32, 32] == 0


def test_blur_is_a_gaussian():
    image = square()
    assert np.array_equal(find("blur")(sigma=2)(image), cv2.GaussianBlur(image, (0, 0), 2))


def test_tile_removes_details_of_its_factor():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[::2] = 200
    assert np.array_equal(find("tile")()(stripes), stripes)
    assert np.abs(find("tile")(down=4)(stripes).astype(int) - 100).max() <= 1


def test_lsd_finds_the_sides_of_a_square():
    found = find("lsd")(resolution=None)(square())[..., 0] > 0
    rows, columns = np.nonzero(found)
    assert 100 <= found.sum() <= 200 and min(rows.min(), columns.min()) >= 14 and rows.max() <= 50
    assert not find("lsd")(resolution=None, min_length=40)(square()).any()
    assert not find("lsd")(resolution=None)(np.zeros((64, 64, 3), np.uint8)).any()


def test_shuffle_moves_colours_by_its_seed():
    image = photograph()[:192, :256]
    first, again, other = (find("shuffle")(seed=seed, cell=64)(image) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert not np.array_equal(first, image) and abs(first.mean() - image.mean()) < 40


def test_the_flow_is_that_of_controlnet_aux_after_the_same_seed():
    theirs = aux("util").make_noise_disk
    np.random.seed(3)
    expected = [theirs(100, 150, 1, 32)[..., 0] for _ in range(2)]
    draw = np.random.RandomState(3)
    for noise in expected:
        np.testing.assert_allclose(smooth_noise(draw, 100, 150, 32), noise, atol=1e-12)


def test_shuffle_equals_controlnet_aux():
    image = photograph()[:192, :256]
    np.random.seed(12345)
    expected = aux("shuffle").ContentShuffleDetector()(
        image, detect_resolution=192, image_resolution=192, output_type="np"
    )
    assert np.array_equal(find("shuffle")()(image), expected)


@pytest.mark.parametrize("shape", [(120, 90), (700, 1000), (512, 512)])
def test_resizing_equals_controlnet_aux(shape: tuple[int, int]):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = aux("util").resize_image(image, 256)
    size = detection_size(shape, 256)
    assert np.array_equal(find("blur")(resolution=256).shrunk(image, size), expected)


def test_a_segmentation_map_keeps_its_colours():
    assert palette().shape == (151, 3) and palette()[2].tolist() == [6, 230, 230]  # sky
    blocks = np.kron(palette()[:16].reshape(4, 4, 3), np.ones((40, 40, 1), np.uint8))
    assert np.array_equal(find("seg")()(blocks), blocks)
    small = find("seg")(resolution=64).detect(blocks)
    assert small.shape == (64, 64, 3) and set(map(tuple, small.reshape(-1, 3))) == set(
        map(tuple, palette()[:16])
    )


def test_other_colours_are_refused_or_replaced():
    image = np.array([[palette()[2], palette()[2] + [2, 0, 1]]], np.uint8)
    with pytest.raises(InputError, match="1 of 2 colours are of no ADE20K class, such as RGB 8,230,231"):
        find("seg")()(image)
    assert (find("seg")(nearest=True)(image) == palette()[2]).all()
