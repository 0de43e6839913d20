"""Opening images: every mode becomes the right RGB, and anything else is one clear error."""

import errno
import io
import logging
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ldm.errors import InputError, OutOfMemory
from ldm.imaging import files
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


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match="a folder"):
        open_image(tmp_path)


def png_with(*chunks: bytes, after: bytes = b"") -> bytes:
    """A whole PNG of 2 x 1 pixels with chunks before and after its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0))
    row = chunk(b"IDAT", zlib.compress(b"\0" + bytes([9, 8, 7, 6, 5, 4])))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + row + after + chunk(b"IEND", b"")


def jpeg_with(*segments: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 90, 90)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()[:2] + b"".join(segments) + buffer.getvalue()[2:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(data) + 2) + data


BOMB = zlib.compress(bytes(5_000_000))
DAMAGED_METADATA = {
    "eXIf of 6 bytes": png_with(chunk(b"eXIf", b"MM\0*\0\0")),
    "eXIf that points outside": png_with(chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\xff\1\x12")),
    "eXIf of nothing": png_with(chunk(b"eXIf", b"")),
    "eXIf of words": png_with(chunk(b"eXIf", b"no EXIF at all")),
    "iCCP of words": png_with(chunk(b"iCCP", b"profile")),
    "iCCP of another method": png_with(chunk(b"iCCP", b"a\0\5xx")),
    "iCCP that cannot be unpacked": png_with(chunk(b"iCCP", b"a\0\0xxxx")),
    "iCCP of zeros": png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200)))),
    "a wrong check sum": png_with(chunk(b"tEXt", b"a\0b")[:-4] + b"oops"),
    "a wrong check sum at the end": png_with(after=chunk(b"tEXt", b"a\0b")[:-4] + b"oops"),
    "a text bomb": png_with(chunk(b"zTXt", b"a\0\0" + BOMB)),
    "a text bomb at the end": png_with(after=chunk(b"zTXt", b"a\0\0" + BOMB)),
    "zTXt of another method": png_with(chunk(b"zTXt", b"a\0\7" + BOMB)),
    "iTXt that cannot be unpacked": png_with(chunk(b"iTXt", b"a\0\1\0en\0\0xxxx")),
    "an empty text": png_with(chunk(b"tEXt", b"")),
    "gAMA cut short": png_with(chunk(b"gAMA", b"\0")),
    "gAMA of 0": png_with(chunk(b"gAMA", bytes(4))),
    "cHRM cut short": png_with(chunk(b"cHRM", b"\0\0")),
    "cHRM of zeros": png_with(chunk(b"cHRM", bytes(32))),
    "pHYs cut short": png_with(chunk(b"pHYs", b"\0")),
    "EXIF of words": jpeg_with(segment(0xE1, b"Exif\0\0nonsense")),
    "EXIF cut short": jpeg_with(segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\xff")),
    "an ICC profile of words": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1nonsense")),
    "a part of an ICC profile": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\2\3nonsense")),
    "an ICC profile of nothing": jpeg_with(segment(0xE2, b"ICC_PROFILE\0")),
    "several pictures of words": jpeg_with(segment(0xE2, b"MPF\0nonsense")),
    "Photoshop's of words": jpeg_with(segment(0xED, b"Photoshop 3.0\0008BIM\4\4")),
}


@pytest.mark.parametrize("name", DAMAGED_METADATA)
def test_damaged_metadata_cost_no_more_than_themselves(tmp_path, caplog, recwarn, name):
    (tmp_path / "image.dat").write_bytes(DAMAGED_METADATA[name])
    with caplog.at_level(logging.INFO, logger="ldm"):
        found = np.asarray(open_image(tmp_path / "image.dat", alpha=None))
    is_png = DAMAGED_METADATA[name].startswith(b"\x89PNG")
    expected = [[[9, 8, 7], [6, 5, 4]]] if is_png else np.full((8, 8, 3), 90).tolist()
    assert found.tolist() == expected
    assert not recwarn.list and all("complete" not in line and len(line) < 400 for line in caplog.messages)


def test_damaged_metadata_are_named_for_debugging(tmp_path, caplog):
    (tmp_path / "image.png").write_bytes(DAMAGED_METADATA["eXIf of 6 bytes"])
    with caplog.at_level(logging.DEBUG, logger="ldm"):
        open_image(tmp_path / "image.png")
    assert "image.png: its EXIF data are damaged" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp", "gif", "ppm"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_only_of_a_file_that_ends_too_early_it_is_asked_whether_it_is_complete(tmp_path, suffix, share):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    whole = saved(tmp_path, Image.fromarray(noise), f"whole.{suffix}").read_bytes()
    (tmp_path / "part").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"is the file complete\?$"):
        open_image(tmp_path / "part")


def test_other_reasons_are_said_without_that_question(tmp_path):
    floats = saved(tmp_path, Image.new("F", (2, 2)), "float.tif")
    broken = bytearray(png_with())
    broken[45] ^= 255  # in the pixels
    (tmp_path / "broken.png").write_bytes(broken)
    (tmp_path / "large.png").write_bytes(png(12_000, 12_000))
    (tmp_path / "larger.png").write_bytes(png(2**31 - 1, 2**31 - 1))
    for path, says in (
        (floats, "floating-point"), (tmp_path / "broken.png", "damaged"),
        (tmp_path / "large.png", "make it smaller"), (tmp_path / "larger.png", "make it smaller"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says) as error:
            open_image(path)
        assert "complete" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize("where", ["read_bytes", "load", "convert", "numpy"])
def test_a_lack_of_memory_is_no_fault_of_the_file(tmp_path, monkeypatch, where):
    path = saved(tmp_path, Image.fromarray(CORNERS.astype(np.uint16) * 257))

    def fail(*_args, **_options):
        raise MemoryError

    owner = {"read_bytes": files.Path, "load": files.Image.Image, "convert": files.Image.Image, "numpy": np}
    monkeypatch.setattr(owner[where], "rint" if where == "numpy" else where, fail)
    if where == "load":
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(OutOfMemory, match="cannot open image .*not enough memory") as error:
        open_image(path)
    assert error.value.exit_code == 6


def test_what_the_file_system_says_is_repeated(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(CORNERS))

    def fail(*_args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.Path, "read_bytes", fail)
    with pytest.raises(InputError, match="Input/output error$"):
        open_image(path)
    with pytest.raises(InputError, match="File name too long"):
        open_image(tmp_path / ("x" * 3000))


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(InputError, match="it is a pipe, not a file"):
        open_image(tmp_path / "pipe.png")


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def deep(colour_type: int, values: np.ndarray, interlaced: bool = False) -> bytes:
    """A PNG of 16 bits with a different filter in every row."""
    height, width, _ = values.shape
    grid = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = b"".join(filtered(values[y::dy, x::dx]) for x, y, dx, dy in grid)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, int(interlaced))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def filtered(values: np.ndarray) -> bytes:
    _, width, channels = values.shape
    rows, before = b"", np.zeros(2 * channels * width, np.int64)
    for y, row in enumerate(values.astype(">u2") if width else ()):
        now, bpp = np.frombuffer(row.tobytes(), np.uint8).astype(np.int64), 2 * channels
        left = np.concatenate([np.zeros(bpp, np.int64), now[:-bpp]])
        corner = np.concatenate([np.zeros(bpp, np.int64), before[:-bpp]])
        guess = left + before - corner
        distances = np.abs(np.stack([guess - left, guess - before, guess - corner]))
        paeth = np.stack([left, before, corner])[distances.argmin(0), np.arange(len(now))]
        packed = (now - [0 * now, left, before, (left + before) // 2, paeth][y % 5]) % 256
        rows += bytes([y % 5]) + packed.astype(np.uint8).tobytes()
        before = now
    return rows


@pytest.mark.parametrize("size", [(11, 7), (1, 1), (3, 2), (16, 16)])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_all_16_bits_of_a_png_in_colour_can_be_read(colour_type, channels, interlaced, size):
    values = np.random.default_rng(0).integers(0, 65536, (*size, channels), np.uint16)
    found = files.deep_colour(deep(colour_type, values, interlaced))
    expected = values if channels > 2 else np.dstack([values[..., :1]] * 3 + [values[..., 1:]])
    assert np.array_equal(found, expected)
    assert files.deep_colour(png_with()) is None


def jpeg_with(marker: int, content: bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(CORNERS).save(file, "JPEG")
    part = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    return file.getvalue()[:2] + part + file.getvalue()[2:]


@pytest.mark.parametrize("content", [b"", b"Adobe", b"Adobe\0", b"Adobe\0d\0\0\0\0"])
def test_a_cut_colour_transform_of_a_jpeg_costs_nothing_else(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(jpeg_with(0xEE, content))
    assert open_image(tmp_path / "a.jpg").size == CORNERS.shape[1::-1]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\x01\x02half", "is missing; it is ignored"), (b"\x02\x02half", "is missing; it is ignored"),
     (b"", "left out, with its colour profile")],
)  # fmt: skip
def test_a_profile_of_which_a_part_is_missing_is_said_to_be(tmp_path, content, words, caplog):
    caplog.set_level(logging.INFO, "ldm")
    (tmp_path / "a.jpg").write_bytes(jpeg_with(0xE2, b"ICC_PROFILE\0" + content))
    open_image(tmp_path / "a.jpg")
    assert len(caplog.records) == 1 and caplog.messages[0].endswith(words)
