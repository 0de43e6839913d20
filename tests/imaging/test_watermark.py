"""The invisible mark: readable in every image that is large enough, and hardly to be seen."""

import numpy as np
import pytest

from ldm.imaging import watermark


def textured(height: int = 256, width: int = 256, noise: float = 32) -> np.ndarray:
    """Soft colours under much noise, which holds the mark well."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 17 + y / 29), np.cos(x / 23), np.sin(y / 13)], axis=-1)
    grain = np.random.default_rng(0).normal(0, noise, (height, width, 3))
    return (128 + 80 * waves + grain).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("payload", watermark.REFERENCE_PAYLOADS)
@pytest.mark.parametrize("size", [(256, 256), (320, 409), (401, 353)])
def test_every_reference_watermark_is_recognised(payload, size):
    image = textured(*size)
    marked = watermark.mark(image, payload)
    assert marked.shape == image.shape and marked.dtype == np.uint8
    assert watermark.recognise(marked) == payload
    assert watermark.recognise(image) is None


@pytest.mark.few(12)
@pytest.mark.parametrize("payload", watermark.REFERENCE_PAYLOADS)
@pytest.mark.parametrize("size", [(256, 256), (321, 263), (8, 8195)])
@pytest.mark.parametrize("kind", ["noise", "extremes", "waves", "flat"])
def test_marking_and_reading_equal_the_library_to_the_bit(kind, size, payload):
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    rng = np.random.default_rng(0)
    image = {
        "noise": lambda: rng.integers(0, 256, (*size, 3), dtype=np.uint8),
        "extremes": lambda: rng.choice(np.array([0, 255], np.uint8), (*size, 3)),
        "waves": lambda: textured(*size, noise=4),
        "flat": lambda: np.full((*size, 3), (250, 3, 120), np.uint8),
    }[kind]()
    encoder, decoder = WatermarkEncoder(), WatermarkDecoder("bytes", 8 * len(payload))
    encoder.set_watermark("bytes", payload)
    marked = encoder.encode(np.ascontiguousarray(image[:, :, ::-1]), "dwtDct")[:, :, ::-1]
    assert np.array_equal(watermark.mark_as_reference(image, payload), marked)
    for each in (image, marked):
        expected = decoder.decode(np.ascontiguousarray(each[:, :, ::-1]), "dwtDct")
        assert watermark.read(each, 8 * len(payload)) == expected


def test_a_few_wrong_bits_are_forgiven_and_many_are_not(monkeypatch):
    for wrong, expected in ((0b1111, True), (0b11111, False)):
        damaged = (int.from_bytes(b"SDV2", "big") ^ wrong).to_bytes(4, "big")
        monkeypatch.setattr(watermark, "read", lambda image, num_bits, damaged=damaged: damaged)
        assert watermark.carries(textured()) is expected


@pytest.mark.parametrize("value", [0, 127, 255])
def test_flat_unmarked_images_are_not_mistaken(value):
    assert watermark.recognise(np.full((256, 256, 3), value, np.uint8)) is None


def flat(*colour: int) -> np.ndarray:
    return np.full((256, 256, 3), colour, np.uint8)


def stripes(first: tuple, second: tuple, width: int) -> np.ndarray:
    """Columns of two colours in turn."""
    return np.where((np.arange(256) // width % 2)[None, :, None] == 1, flat(*second), flat(*first))


YELLOW, BLUE, RED, CYAN = (255, 255, 0), (0, 0, 255), (255, 0, 0), (0, 255, 255)
LEAST_PSNR = {  # those below 45 dB are within 2 dB of the nearest image that carries all bits
    "columns": (stripes(YELLOW, BLUE, 1), 45),
    "rows": (stripes(YELLOW, BLUE, 1).swapaxes(0, 1), 45),
    "red and cyan": (stripes(RED, CYAN, 1), 45),
    "wide columns": (stripes(YELLOW, BLUE, 3), 45),
    "black": (flat(0, 0, 0), 45),
    "white": (flat(255, 255, 255), 45),
    "grey": (flat(128, 128, 128), 45),
    "red": (flat(*RED), 45),
    "green": (flat(0, 255, 0), 45),
    "cyan": (flat(*CYAN), 45),
    "yellow": (flat(*YELLOW), 45),
    "blue": (flat(*BLUE), 40),
    "magenta": (flat(255, 0, 255), 42),
    "noise": (np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), 45),
    "extremes": (np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (256, 263, 3)), 45),
    "soft": (textured(264, 277, noise=2), 45),
    "rough": (textured(), 45),
}


@pytest.mark.parametrize("name", LEAST_PSNR)
def test_the_mark_is_read_by_the_library_and_hard_to_see(name):
    from imwatermark import WatermarkDecoder

    image, least = LEAST_PSNR[name]
    marked = watermark.mark(image)
    decoded = WatermarkDecoder("bytes", 32).decode(np.ascontiguousarray(marked[:, :, ::-1]), "dwtDct")
    assert decoded == b"SDV2" and watermark.recognise(marked) == b"SDV2"
    change = marked.astype(np.float64) - image
    assert 0 < abs(change).max() <= 30
    assert 10 * np.log10(255**2 / np.square(change).mean()) >= least


def test_a_marked_image_is_hardly_changed_by_marking_it_again():
    marked = watermark.mark(textured())
    change = watermark.mark(marked).astype(float) - marked
    assert np.square(change).mean() < 0.2


@pytest.mark.parametrize("size", [(255, 256), (64, 64), (1, 65536), (7, 10_000)])
def test_small_and_thin_images_do_not_fit(size):
    assert not watermark.fits(np.zeros((*size, 3), np.uint8))
    assert watermark.recognise(np.zeros((*size, 3), np.uint8)) is None


@pytest.mark.parametrize("size", [(8, 8192), (8192, 9), (257, 256)])
def test_whatever_fits_can_be_marked(size):
    image = textured(*size)
    assert watermark.fits(image) and watermark.mark(image).shape == image.shape
