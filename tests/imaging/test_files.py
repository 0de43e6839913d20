"""Opening images: every mode becomes the right RGB, and anything else is one clear error."""

import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ldm.errors import InputError
from ldm.imaging.files import open_image

CORNERS = np.array([[10, 60, 110], [160, 200, 250]], np.uint8)  # 3 x 2, all pixels different

# EXIF orientation -> what the stored pixels look like when shown upright
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).T,
    8: np.rot90,
}


def saved(tmp_path, image: Image.Image, name: str = "image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def pixels(path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_undone(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(CORNERS), exif=exif)
    assert np.array_equal(pixels(path)[:, :, 0], UPRIGHT[orientation](CORNERS))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_become_white_and_hidden_colours_never_show(tmp_path, mode):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    assert pixels(saved(tmp_path, image.convert(mode))).tolist() == [[[255, 255, 255], [0, 0, 0]]]


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    path = saved(tmp_path, Image.new("RGBA", (1, 1), (0, 0, 0, 128)))
    assert pixels(path).tolist() == [[[127, 127, 127]]]


@pytest.mark.parametrize(
    ("image", "transparent"),
    [
        (Image.new("L", (1, 1), 7), 7),
        (Image.new("RGB", (1, 1), (1, 2, 3)), (1, 2, 3)),
        (Image.new("P", (1, 1), 0), 0),
    ],
    ids=["grey", "rgb", "palette"],
)
def test_a_transparent_colour_becomes_white(tmp_path, image, transparent):
    assert pixels(saved(tmp_path, image, transparency=transparent)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    grey = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    path = saved(tmp_path, Image.fromarray(grey), f"image.{suffix}")
    assert pixels(path)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(colour_type: int, *values: int, clear: tuple[int, ...] = ()) -> bytes:
    """A PNG of one row, 16 bits a channel, with a transparent colour if there is one."""
    width = len(values) // {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 16, colour_type, 0, 0, 0))
    transparent = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    row = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values)))
    return b"\x89PNG\r\n\x1a\n" + header + transparent + row + chunk(b"IEND", b"")


DEEP = {  # name -> PNG, RGBA of its pixels
    "grey": (deep_png(0, 300, 65535), [[1, 1, 1, 255], [255, 255, 255, 255]]),
    "clear grey": (deep_png(0, 300, 301, clear=(300,)), [[1, 1, 1, 0], [1, 1, 1, 255]]),
    "grey and alpha": (deep_png(4, 25700, 32896), [[100, 100, 100, 128]]),
    "colour": (deep_png(2, 257, 514, 65535), [[1, 2, 255, 255]]),
    "clear colour": (deep_png(2, 257, 514, 771, 0, 0, 0, clear=(257, 514, 771)),
                     [[1, 2, 3, 0], [0, 0, 0, 255]]),
    "colour and alpha": (deep_png(6, 257, 514, 65535, 32896), [[1, 2, 255, 128]]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), DEEP.values(), ids=DEEP.keys())
def test_sixteen_bits_keep_their_alpha_and_say_what_is_lost(tmp_path, caplog, content, expected):
    (tmp_path / "deep.png").write_bytes(content)
    with caplog.at_level(logging.INFO, logger="ldm"):
        image = open_image(tmp_path / "deep.png", alpha=True)
    assert image.mode == "RGBA" and np.asarray(image)[0].tolist() == expected
    assert ("upper 8" in caplog.text) == (content[25] != 0)  # the colour type: not for grey
    on_white = np.asarray(open_image(tmp_path / "deep.png"))[0]
    for pixel, (*colour, alpha) in zip(on_white, expected, strict=True):
        assert np.abs(pixel - (np.array(colour) * (alpha / 255) + 255 - alpha)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "options", "expected"),
    [
        ("RGBA", (9, 8, 7, 0), {}, [9, 8, 7, 0]),
        ("LA", (9, 60), {}, [9, 9, 9, 60]),
        ("P", 0, {"transparency": 0}, [0, 0, 0, 0]),
        ("P", 0, {"transparency": b"\x40"}, [0, 0, 0, 64]),
        ("L", 7, {"transparency": 7}, [7, 7, 7, 0]),
        ("L", 7, {}, [7, 7, 7, 255]),
        ("RGB", (1, 2, 3), {"transparency": (1, 2, 3)}, [1, 2, 3, 0]),
        ("RGB", (1, 2, 3), {}, [1, 2, 3, 255]),
        ("1", 1, {}, [255, 255, 255, 255]),
    ],
)
def test_alpha_is_kept_where_it_is_asked_for(tmp_path, mode, colour, options, expected):
    path = saved(tmp_path, Image.new(mode, (2, 1), colour), **options)
    image = open_image(path, alpha=True)
    assert image.mode == "RGBA" and np.asarray(image).tolist() == [[expected, expected]]


def test_an_image_with_alpha_is_turned_upright_with_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = Image.fromarray(CORNERS)
    path = saved(tmp_path, Image.merge("LA", (alpha, alpha)), exif=exif)
    assert np.array_equal(np.asarray(open_image(path, alpha=True))[:, :, 3], UPRIGHT[6](CORNERS))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [("1", 1, [255, 255, 255]), ("L", 77, [77, 77, 77]), ("CMYK", (0, 255, 255, 0), [255, 0, 0])],
)
def test_other_modes_become_rgb(tmp_path, mode, colour, expected):
    suffix = "tif" if mode == "CMYK" else "png"
    assert pixels(saved(tmp_path, Image.new(mode, (1, 1), colour), f"image.{suffix}")).tolist() == [
        [expected]
    ]


def test_cmyk_jpeg_is_not_inverted(tmp_path):
    path = saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "image.jpg", quality=100)
    red, green, blue = pixels(path)[4, 4].astype(int)
    assert red < 10 < 245 < min(green, blue)


def test_the_first_frame_is_used_and_said_so(tmp_path, caplog):
    frames = [Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 255)]
    path = saved(tmp_path, frames[0], "image.gif", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.INFO, logger="ldm"):
        assert pixels(path).max() == 0
    assert "2 frames" in caplog.text


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def truncated(tmp_path, suffix: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = saved(tmp_path, Image.fromarray(noise), f"whole.{suffix}").read_bytes()
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"8BPS\0\1" + b"\0" * 64, "not an image"),
        (png(12_000, 12_000), "make it smaller"),
        (png(2**31 - 1, 1), "cannot open"),
        (png(0, 5), "cannot open"),
        (png(100, 100), "cannot open"),
    ],
    ids=["empty", "html", "eps", "psd", "144-megapixels", "2-billion-wide", "no-pixels", "too-little-data"],
)
def test_what_is_no_usable_image_is_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        open_image(tmp_path / "image.png")
    assert "\n" not in str(error.value) and "image.png" in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
def test_half_a_file_is_refused(tmp_path, suffix):
    (tmp_path / f"half.{suffix}").write_bytes(truncated(tmp_path, suffix))
    with pytest.raises(InputError, match="cannot open"):
        open_image(tmp_path / f"half.{suffix}")


def test_a_text_bomb_is_refused(tmp_path):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("bomb", "a" * 5_000_000, zip=True)
    path = saved(tmp_path, Image.new("L", (1, 1)), pnginfo=chunks)
    with pytest.raises(InputError, match="cannot open"):
        open_image(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="a folder"):
        open_image(tmp_path)
