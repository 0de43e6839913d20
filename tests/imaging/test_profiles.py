"""Colour profiles: models see sRGB, and bytes that are kept keep their profile."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.imaging import profiles
from ldm.imaging.files import open_image
from ldm.imaging.paste import Paste

P3_POINTS = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
P3 = profiles.made_profile(2.2, P3_POINTS)
LINEAR = profiles.made_profile(1.0, profiles.SRGB_POINTS)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


def grey_profile(exponent: float) -> bytes:
    curve = b"curv" + struct.pack(">IIHxx", 0, 1, round(256 * exponent))
    tags = {b"wtpt": b"XYZ " + struct.pack(">I3i", 0, 63190, 65536, 54061), b"kTRC": curve}
    tags |= {b"desc": b"desc" + struct.pack(">II", 0, 5) + b"grey\0" + bytes(81)}
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I4sI", start + len(data), b"none", 0x02400000) + b"mntrGRAYXYZ " + bytes(12)
    return header + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + table + data


def xyz_to_srgb(xyz: np.ndarray) -> np.ndarray:
    """The definition of sRGB, IEC 61966-2-1: XYZ of white D65 to 0..255."""
    matrix = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    linear = np.clip(xyz @ np.array(matrix).T, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def from_p3(pixels: np.ndarray) -> np.ndarray:
    """The definition of Display P3's primaries, with a gamma of 2.2."""
    matrix = [[0.48657, 0.26567, 0.19822], [0.22897, 0.69174, 0.07929], [0.0, 0.04511, 1.04394]]
    return xyz_to_srgb((pixels / 255) ** 2.2 @ np.array(matrix).T)


def opened(tmp_path, image: Image.Image, name: str = "i.png", own: bool = False, **options) -> Image.Image:
    image.save(tmp_path / name, **options)
    return open_image(tmp_path / name, alpha=None, own_colours=own)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_colours_are_converted_and_that_is_said(tmp_path, caplog, suffix):
    flat = np.full((16, 16, 3), (200, 120, 60), np.uint8)
    options = {"quality": 100} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    with caplog.at_level(logging.INFO, logger="ldm"):
        found = opened(tmp_path, Image.fromarray(flat), f"i.{suffix}", icc_profile=P3, **options)
    assert np.abs(np.asarray(found) - from_p3(flat)).max() <= 3 and "icc_profile" not in found.info
    assert len(caplog.messages) == 1 and "converted to sRGB from its profile (gAMA" in caplog.text


def test_every_colour_is_right_and_alpha_stays(tmp_path):
    rgba = np.dstack([PIXELS, PIXELS[..., 0]])
    found = np.asarray(opened(tmp_path, Image.fromarray(rgba), icc_profile=P3))
    assert np.abs(found[..., :3] - from_p3(PIXELS)).max() <= 4 and np.array_equal(found[..., 3], rgba[..., 3])
    assert np.abs(found[..., :3].astype(int) - PIXELS).max() > 20


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(path, pixels: np.ndarray, *chunks: bytes):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue()[:33] + b"".join(chunks) + buffer.getvalue()[33:])
    return path


def chromaticities(points) -> bytes:
    return png_chunk(b"cHRM", struct.pack(">8I", *(round(100_000 * each) for each in points)))


def gamma(value: float) -> bytes:
    return png_chunk(b"gAMA", struct.pack(">I", round(100_000 * value)))


def test_gamma_and_primaries_of_a_png_count(tmp_path):
    path = with_chunks(tmp_path / "i.png", PIXELS, gamma(1 / 2.2), chromaticities(P3_POINTS))
    assert np.abs(np.asarray(open_image(path)) - from_p3(PIXELS)).max() <= 4
    path = with_chunks(tmp_path / "i.png", PIXELS, gamma(1.0))
    linear = 255 * np.where(PIXELS <= 0.8, PIXELS / 255 * 12.92, 1.055 * (PIXELS / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(np.asarray(open_image(path)) - linear).max() <= 3


@pytest.mark.parametrize(
    "chunks",
    [
        [gamma(0.45455)],
        [gamma(0.45455), chromaticities(profiles.SRGB_POINTS)],
        [png_chunk(b"sRGB", b"\0"), gamma(0.45455)],
        [png_chunk(b"sRGB", b"\0"), gamma(1.0)],
        [png_chunk(b"iCCP", b"a\0\0" + zlib.compress(SRGB))],
        [png_chunk(b"iCCP", b"a\0\0" + zlib.compress(SRGB)), gamma(1.0)],
    ],
    ids=["gamma", "gamma and primaries", "sRGB", "sRGB before gamma", "profile", "profile before gamma"],
)
@pytest.mark.parametrize("own", [False, True])
def test_what_is_srgb_stays_byte_for_byte_in_silence(tmp_path, caplog, chunks, own):
    path = with_chunks(tmp_path / "i.png", PIXELS, *chunks)
    with caplog.at_level(logging.INFO, logger="ldm"):
        assert np.array_equal(np.asarray(open_image(path, own_colours=own)), PIXELS)
    assert not caplog.messages


def test_a_linear_profile_is_not_taken_for_srgb_whatever_its_name():
    assert profiles.is_srgb(SRGB) and not profiles.is_srgb(LINEAR) and not profiles.is_srgb(P3)


def test_grey_profiles_count(tmp_path, caplog):
    grey = np.arange(256, dtype=np.uint8)[None]
    with caplog.at_level(logging.INFO, logger="ldm"):
        found = np.asarray(opened(tmp_path, Image.fromarray(grey), icc_profile=grey_profile(1.0)))
    expected = xyz_to_srgb((grey[..., None] / 255) * np.array([0.9505, 1.0, 1.089]))
    off = np.abs(found.astype(float) - expected)
    assert off.max() <= 10 and off[:, 16:].max() <= 3 and "converted to sRGB" in caplog.text
    both = Image.merge("LA", [Image.fromarray(grey)] * 2)
    with_alpha = np.asarray(opened(tmp_path, both, icc_profile=grey_profile(1.0)))
    assert np.array_equal(with_alpha[..., :3], found) and np.array_equal(with_alpha[..., 3], grey)


def test_lab_becomes_srgb(tmp_path):
    rgb = np.full((8, 8, 3), (200, 120, 60), np.uint8)
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(Image.fromarray(rgb), to_lab)
    assert np.abs(np.asarray(opened(tmp_path, lab, "i.tif")) - rgb.astype(int)).max() <= 3


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"nonsense"),
        ("RGB", P3[:200]),
        ("RGB", P3[:128] + bytes(300)),
        ("RGB", grey_profile(1.0)),
        ("L", P3[:60] + b"\xff" * 80),
        ("CMYK", P3),
    ],
    ids=["words", "cut", "no tags", "of grey", "damaged", "of RGB"],
)
def test_a_broken_profile_costs_a_line_and_never_the_image(tmp_path, caplog, mode, profile):
    image = Image.fromarray(PIXELS).convert(mode)
    with caplog.at_level(logging.INFO, logger="ldm"):
        found = opened(tmp_path, image, "i.tif", icc_profile=profile)
    assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))
    assert "i.tif: its colour profile cannot be used and is ignored" in caplog.messages[0]
    assert all(len(line) < 400 for line in caplog.messages)


def test_kept_bytes_keep_their_profile_and_the_model_sees_srgb(tmp_path):
    found = opened(tmp_path, Image.fromarray(PIXELS), own=True, icc_profile=P3)
    assert np.array_equal(np.asarray(found), PIXELS) and found.info["icc_profile"] == P3
    weight = np.zeros(PIXELS.shape[:2], np.float32)
    weight[3:9, 2:8] = 1
    paste = Paste(PIXELS, weight, P3)
    assert np.abs(paste.seen - from_p3(PIXELS)).max() <= 4
    grey = np.full(PIXELS.shape, 128, np.uint8)
    painted = grey + np.array([60, 0, 20], np.uint8)
    result = paste.onto(painted)
    assert np.array_equal(result[weight == 0], PIXELS[weight == 0])
    assert np.abs(from_p3(result[weight == 1]) - painted[weight == 1]).max() <= 3
    assert np.abs(paste.shown(painted)[weight == 1].astype(int) - painted[weight == 1]).max() <= 3
    assert (paste.onto(painted, lambda image: 0 * image)[weight == 1] == 0).all()


def test_grey_with_a_profile_of_colours_is_converted_even_if_kept(tmp_path):
    image = Image.fromarray(PIXELS[..., 0])
    found = opened(tmp_path, image, own=True, icc_profile=LINEAR)
    assert found.mode == "RGB" and "icc_profile" not in found.info
    assert np.asarray(found).mean() > PIXELS[..., 0].mean() + 20
