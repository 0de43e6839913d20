"""The invisible mark: readable where there is room, never in the way."""

import sys

import numpy as np
import pytest

from ldm.errors import BackendUnavailable
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


def test_the_mark_is_that_of_the_library_on_bgr():
    import cv2
    from imwatermark import WatermarkEncoder

    image = textured()
    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", b"SDV2")
    expected = encoder.encode(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), "dwtDct")[:, :, ::-1]
    assert np.array_equal(watermark.mark(image), expected)


def test_a_few_wrong_bits_are_forgiven_and_many_are_not(monkeypatch):
    for wrong, expected in ((0b1111, True), (0b11111, False)):
        damaged = (int.from_bytes(b"SDV2", "big") ^ wrong).to_bytes(4, "big")
        monkeypatch.setattr(watermark, "read", lambda image, num_bits, damaged=damaged: damaged)
        assert watermark.carries(textured()) is expected


@pytest.mark.parametrize("value", [0, 127, 255])
def test_flat_unmarked_images_are_not_mistaken(value):
    assert watermark.recognise(np.full((256, 256, 3), value, np.uint8)) is None


def test_the_mark_is_hard_to_see():
    image = textured(noise=2)
    change = np.abs(watermark.mark(image).astype(int) - image)
    assert 0 < change.mean() < 4


@pytest.mark.parametrize("size", [(255, 256), (64, 64), (1, 65536), (7, 10_000)])
def test_small_and_thin_images_do_not_fit(size):
    assert not watermark.fits(np.zeros((*size, 3), np.uint8))
    assert watermark.recognise(np.zeros((*size, 3), np.uint8)) is None


@pytest.mark.parametrize("size", [(8, 8192), (8192, 9), (257, 256)])
def test_whatever_fits_can_be_marked(size):
    image = textured(*size)
    assert watermark.fits(image) and watermark.mark(image).shape == image.shape


def test_flat_images_are_marked_without_a_crash():
    black = np.zeros((256, 256, 3), np.uint8)
    assert watermark.mark(black).shape == black.shape


def test_a_library_that_does_not_import_is_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "imwatermark", None)
    with pytest.raises(BackendUnavailable, match="--watermark off"):
        watermark.require()
