"""Image files of every format: their pixels, their metadata as others write it, and their profile."""

import io
import json
import struct
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import InputError
from ldm.imaging import metadata
from ldm.imaging.profiles import made_profile
from ldm.imaging.writing import FORMATS, decoded, encoded, holds

RECORD = {
    "version": "1.2.3", "prompt": "a lighthouse, stormy sea", "seed": 42, "width": 64, "height": 48,
    "resolved": {"negative_prompt": "blurry", "sampler": "dpm", "steps": 20, "scale": 7.5},
}  # fmt: skip
RAMP = np.stack(np.meshgrid(np.arange(64) * 4, np.arange(48) * 5, [90]), axis=-1)[:, :, 0].astype(np.uint8)
KINDS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}


@pytest.mark.parametrize("format", FORMATS)
def test_the_record_comes_back(tmp_path, format):
    (tmp_path / "image").write_bytes(encoded(RAMP, format, None, RECORD, None))
    assert metadata.read_record(tmp_path / "image") == RECORD
    with Image.open(tmp_path / "image") as image:
        assert image.format == KINDS[format]
    (tmp_path / "none").write_bytes(encoded(RAMP, format, None, None, None))
    with pytest.raises(InputError, match="no metadata of this toolkit"):
        metadata.read_record(tmp_path / "none")


@settings(deadline=None, max_examples=40)
@given(st.text(), st.sampled_from(["jpg", "webp"]))
@example("a <b> & \"c\" </ldm:record> ]]> \x00 \ud800 \U0001f600 é\r\n", "jpg")
@example("\x7f\x85\u2028\ufffe\uffff\U0001ffff", "jpg")
@example("&lt;ldm:record&gt;", "webp")
def test_every_prompt_comes_back(tmp_path_factory, prompt, format):
    path = tmp_path_factory.getbasetemp() / "prompt.image"
    path.write_bytes(encoded(RAMP[:4, :4], format, None, RECORD | {"prompt": prompt}, None))
    assert metadata.read_record(path)["prompt"] == prompt
    (text,) = ElementTree.fromstring(metadata.xmp(RECORD | {"prompt": prompt})).itertext()
    assert json.loads(text)["prompt"] == prompt, "as any reader of XML sees it"


def test_a_jpeg_holds_long_prompts_of_any_script(tmp_path):
    """The record is in UTF-8, in which a Chinese character takes 3 bytes and an escaped one would take 6."""
    prompt = "海边灯塔上的一只红猫，" * 1900 + "😀"
    assert 60_000 < len(prompt.encode()) < 64_000
    record = RECORD | {"prompt": prompt}
    assert holds("jpg", record) and prompt.encode() in metadata.xmp(record)
    (tmp_path / "image").write_bytes(encoded(RAMP, "jpg", None, record, None))
    assert metadata.read_record(tmp_path / "image") == record
    assert not holds("jpg", RECORD | {"prompt": prompt + "猫" * 2000})


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_the_web_uis_text_is_the_user_comment(format):
    data = encoded(RAMP, format, None, RECORD | {"prompt": "Mädchen 😀"}, None)
    with Image.open(io.BytesIO(data)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    text = comment[8:].decode("utf-16-be")
    assert text.startswith("Mädchen 😀\nNegative prompt: blurry") and "Steps: 20, Sampler: DPM++ 2M" in text


@pytest.mark.parametrize(
    ("format", "quality", "largest"),
    [
        ("png", None, 0), ("webp", 100, 0), ("webp", None, 14), ("jpg", None, 8), ("jpg", 100, 3),
        ("jpg", 60, 40),
    ],
)
def test_how_near_the_pixels_are(format, quality, largest):
    data = encoded(RAMP, format, quality, None, None)
    assert np.abs(decoded(data).astype(int) - RAMP).max() <= largest
    if format != "png" and quality != 100:
        assert len(encoded(RAMP, format, 30, None, None)) < len(data)


@pytest.mark.parametrize("format", ["png", "webp"])
def test_alpha_and_hidden_colours_are_kept(format):
    image = np.dstack([RAMP, RAMP[..., 0]])
    assert np.array_equal(decoded(encoded(image, format, 100, RECORD, None)), image)


@pytest.mark.parametrize("format", FORMATS)
def test_the_profile_is_kept(format):
    profile = made_profile(1.8, (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06))
    with Image.open(io.BytesIO(encoded(RAMP, format, None, RECORD, profile))) as image:
        assert image.info["icc_profile"] == profile


def test_what_does_not_fit_into_a_jpeg_is_told_and_the_image_is_written(tmp_path):
    long = RECORD | {"prompt": "a long prompt " * 5000}
    data = encoded(RAMP, "jpg", None, long, None)
    assert decoded(data).shape == RAMP.shape and not holds("jpg", long)
    assert holds("jpg", RECORD) and holds("webp", long) and holds("png", long)
    (tmp_path / "image.webp").write_bytes(encoded(RAMP, "webp", None, long, None))
    assert metadata.read_record(tmp_path / "image.webp") == long


def test_the_same_image_has_the_same_bytes():
    for format in FORMATS:
        first, second = (encoded(RAMP, format, 90, RECORD, None) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("format", ["jpg", "webp"])
def test_a_damaged_record_is_refused(tmp_path, format):
    data = encoded(RAMP, format, None, RECORD, None)
    at = data.index(b"<ldm:record>") + len(b"<ldm:record>")
    for damage in (b"[", b"\xff"):
        (tmp_path / "image").write_bytes(data[:at] + damage + data[at + 1 :])
        with pytest.raises(InputError, match="no metadata of this toolkit"):
            metadata.read_record(tmp_path / "image")


def test_jpeg_keeps_the_full_resolution_of_colours_at_high_quality():
    for quality, expected in ((95, 0x11), (90, 0x11), (80, 0x22)):
        data = encoded(RAMP, "jpg", quality, None, None)
        frame = data.index(b"\xff\xc0")
        height, width, _, _, sampling = struct.unpack(">HHBBB", data[frame + 5 : frame + 12])
        assert (height, width, sampling) == (*RAMP.shape[:2], expected)
