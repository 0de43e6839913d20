"""Depth maps from files of every kind, what is refused, and what becomes of unknown pixels."""

import importlib.util
import logging
import struct
import sys
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from ldm.errors import BackendUnavailable, InputError, OutOfMemory
from ldm.imaging.depth import as_levels, depth_png, inverse_depth, read_depth

VALUES = np.arange(5 * 7).reshape(5, 7)
HOLES = np.array([[1.0, np.nan, 3.0], [np.inf, 4.0, -np.inf]], np.float32)


def save_pfm(path, values):
    height, width = values.shape
    data = values[::-1].astype("<f4").tobytes()
    path.write_bytes(f"Pf\n{width} {height}\n-1.0\n".encode() + data)


def save_exr(path, values, channel="Y", half=False):
    import OpenEXR

    name = "RGB" if values.ndim == 3 else channel
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    values = np.ascontiguousarray(values, np.float16 if half else np.float32)
    with OpenEXR.File(header, {name: values}) as file:
        file.write(str(path))


def saved(path, values):
    """Save as the name says: NAME-8bit.png, NAME-16bit.tif, ..."""
    name = path.name
    if name.endswith(".npy"):
        np.save(path, values)
    elif name.endswith(".npz"):
        np.savez_compressed(path, depth=values)
    elif name.endswith(".pfm"):
        save_pfm(path, values)
    elif name.endswith(".exr"):
        save_exr(path, values, half="half" in name)
    else:
        dtype = {"8bit": np.uint8, "16bit": np.uint16, "float": np.float32}[path.stem]
        Image.fromarray(values.astype(dtype)).save(path)
    return path


FILES = "8bit.png 16bit.png 8bit.tif 16bit.tif float.tif a.npy a.npz a.pfm a.exr half.exr 8bit.bmp"


@pytest.mark.parametrize("name", FILES.split())
def test_every_kind_of_file_gives_its_values(tmp_path, name):
    values = VALUES * (1000 if "16bit" in name else 7)
    depth = read_depth(saved(tmp_path / name, values))
    assert depth.dtype == np.float32 and np.array_equal(depth, values)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pfm", "float.tif", "a.exr"])
def test_unknown_pixels_are_read_as_such(tmp_path, name):
    depth = read_depth(saved(tmp_path / name, HOLES))
    assert np.array_equal(depth, HOLES, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.int8, np.uint32, np.float16, np.float64, bool])
def test_arrays_of_any_real_numbers(tmp_path, dtype):
    np.save(tmp_path / "a.npy", VALUES.astype(dtype))
    assert np.array_equal(read_depth(tmp_path / "a.npy"), VALUES.astype(dtype).astype(np.float32))


@pytest.mark.parametrize("shape", [(1, 5, 7), (5, 7, 1), (1, 1, 5, 7), (1, 5, 7, 1), (1, 7), (7, 1)])
def test_axes_of_one_are_left_out_but_not_those_of_the_image(tmp_path, shape):
    values = VALUES.reshape(shape) if VALUES.size == np.prod(shape) else VALUES[:1].reshape(shape)
    np.save(tmp_path / "a.npy", values)
    assert read_depth(tmp_path / "a.npy").shape == (shape if len(shape) == 2 else (5, 7))


def test_grey_may_be_stored_as_colour_and_transparency_is_no_depth(tmp_path):
    grey = np.dstack([VALUES.astype(np.uint8)] * 3)
    Image.fromarray(grey).save(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([grey, 255 - grey[..., 0]])).save(tmp_path / "rgba.png")
    Image.fromarray(grey[..., 0]).convert("P").save(tmp_path / "p.png")
    save_exr(tmp_path / "rgb.exr", grey)
    for name in ("rgb.png", "rgba.png", "p.png", "rgb.exr"):
        assert np.array_equal(read_depth(tmp_path / name), VALUES), name


def test_a_channel_of_another_name_is_read_for_what_it_is(tmp_path):
    for channel in ("Z", "V", "depth.distance"):
        save_exr(tmp_path / "a.exr", VALUES, channel)
        assert np.array_equal(read_depth(tmp_path / "a.exr"), VALUES), channel


def test_a_photograph_turned_by_its_camera_is_upright(tmp_path):
    image = Image.fromarray(VALUES.astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_depth(tmp_path / "a.png"), np.rot90(VALUES, -1))


def exr_of_size(path, side):
    save_exr(path, VALUES)
    window = struct.pack("<4i", 0, 0, 6, 4)
    path.write_bytes(path.read_bytes().replace(window, struct.pack("<4i", 0, 0, side - 1, side - 1), 1))


def npz_of(path, **arrays):
    np.savez(path, **arrays)


def half_of(path, kind):
    saved(path, np.random.default_rng(0).random((64, 64)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bomb(path):
    """Say in the archive's table that what is packed takes 4 GB."""
    np.savez_compressed(path, depth=VALUES)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 4 * 10**9)
    path.write_bytes(data)


WRONG = {
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "empty": (lambda path: path.write_bytes(b""), "in a known format"),
    "text": (lambda path: path.write_text("depth"), "in a known format"),
    "colour": (lambda path: Image.fromarray(np.dstack([VALUES, VALUES, 2 * VALUES]).astype(np.uint8))
               .save(path, "PNG"), "in colour"),
    "half.npy": (lambda path: half_of(path, "npy"), "complete"),
    "half.npz": (lambda path: half_of(path, "npz"), "complete"),
    "half.pfm": (lambda path: half_of(path, "pfm"), "complete"),
    "half.exr": (lambda path: half_of(path, "exr"), "complete"),
    "objects.npy": (lambda path: np.save(path, np.array([{}]), allow_pickle=True), "Python objects"),
    "complex.npy": (lambda path: np.save(path, VALUES * 1j), "complex128"),
    "text.npy": (lambda path: np.save(path, np.array([["a"]])), "real numbers"),
    "flat.npy": (lambda path: np.save(path, VALUES.ravel()), "shape (35,)"),
    "none.npy": (lambda path: np.save(path, VALUES[:0]), "no pixels"),
    "video.npy": (lambda path: np.save(path, np.zeros((2, 5, 7))), "shape (2, 5, 7)"),
    "long.npy": (lambda path: np.save(path, np.zeros((1, 20000), np.uint8)), "20000x1"),
    "two.npz": (lambda path: npz_of(path, left=VALUES, right=VALUES), "left, right"),
    "bomb.npz": (bomb, "at most"),
    "huge.exr": (lambda path: exr_of_size(path, 60000), "60000x60000"),
}  # fmt: skip


def test_a_tiff_file_of_unusual_pixels_is_named_for_what_it_is(tmp_path):
    Image.fromarray(np.zeros((4, 6, 4), np.uint8), "RGBA").save(tmp_path / "a.tif")
    data = (tmp_path / "a.tif").read_bytes()
    sample_format = struct.pack("<HHIHH", 339, 3, 1, 3, 0)  # floating point
    resolution = struct.pack("<HH", 296, 3)
    fields = data[struct.unpack("<I", data[4:8])[0] :]
    at = data.index(fields) + 2
    entries = [fields[2 + 12 * i : 14 + 12 * i] for i in range(struct.unpack("<H", fields[:2])[0])]
    keep = [each for each in entries if each[:2] not in (sample_format[:2], resolution[:2])][-1]
    place = data.index(keep, at)
    (tmp_path / "a.tif").write_bytes(data[:place] + sample_format + data[place + 12 :])
    with pytest.raises(InputError, match="a TIFF file with 4 channels of 8 floating-point bits"):
        read_depth(tmp_path / "a.tif")


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_depth_map_is_refused_in_one_line(tmp_path, name):
    write, words = WRONG[name]
    write(tmp_path / name)
    with pytest.raises(InputError) as error:
        read_depth(tmp_path / name)
    assert words in str(error.value) and "\n" not in str(error.value) and name in str(error.value)


def test_a_huge_image_is_refused_by_its_header(tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="megapixels"):
        read_depth(tmp_path / "a.png")


def test_layers_of_an_exr_are_named(tmp_path):
    save_exr(tmp_path / "a.exr", np.dstack([VALUES] * 3))
    file = tmp_path / "a.exr"
    file.write_bytes(file.read_bytes().replace(b"\x00R\x00", b"\x00Z\x00", 1))
    with pytest.raises(InputError, match="channels are B, G, Z"):
        read_depth(file)


def test_without_openexr_the_line_says_what_to_install(tmp_path, monkeypatch):
    save_exr(tmp_path / "a.exr", VALUES)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(BackendUnavailable, match="pip install openexr"):
        read_depth(tmp_path / "a.exr")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_flipping_turns_the_order_around_and_keeps_the_range(dtype):
    turned = inverse_depth(VALUES.astype(dtype), "flip")
    assert np.array_equal(turned, VALUES.max() - VALUES) and turned.dtype == np.float32


def test_reciprocal_knows_nothing_of_what_is_no_distance(caplog):
    caplog.set_level(logging.INFO, "ldm")
    metres = np.array([[1, 2, 4], [0, -1, 2]], np.float32)
    turned = inverse_depth(metres, "reciprocal")
    assert np.array_equal(turned[0], [1, 0.5, 0.25]) and turned[1, 2] == 0.5
    assert 0.25 <= turned[1, 0] <= 1 and "2 of 6" in caplog.text


def test_unknown_pixels_are_filled_from_around_and_counted(caplog):
    caplog.set_level(logging.INFO, "ldm")
    values = np.full((40, 50), 3.0)
    values[:, 25:] = 9
    holed = values.copy()
    holed[5:15, 5:15], holed[20:30, 35:45], holed[0, 0] = np.nan, np.inf, -np.inf
    filled = inverse_depth(holed)
    known = np.isfinite(holed)
    assert np.array_equal(filled[known], values[known].astype(np.float32))
    assert np.abs(filled - values).max() < 1.5 and np.isfinite(filled).all()
    assert "201 of 2000" in caplog.text
    caplog.clear()
    assert np.array_equal(inverse_depth(values), values) and not caplog.text


def test_what_fills_lies_within_the_range():
    rng = np.random.default_rng(0)
    for size in [(1, 9), (9, 1), (13, 17), (64, 3)]:
        values = rng.uniform(5, 6, size)
        holed = np.where(rng.random(size) < 0.7, np.nan, values)
        holed.flat[0] = 5.5
        filled = inverse_depth(holed)
        assert filled.shape == size and filled.min() >= 5 - 1e-5 and filled.max() <= 6 + 1e-5


@pytest.mark.parametrize(
    "values, words",
    [(np.full((4, 4), np.nan), "every pixel"), (np.zeros(4), "shape"), (np.zeros((0, 4)), "shape")],
)
def test_a_map_of_nothing_is_refused(values, words):
    with pytest.raises(InputError, match=words):
        inverse_depth(values)
    with pytest.raises(InputError, match="flip, reciprocal"):
        inverse_depth(VALUES, "mirror")


def test_levels_span_the_range_and_are_read_back(tmp_path):
    depth = np.random.default_rng(0).normal(3, 40, (21, 33)).astype(np.float32)
    (tmp_path / "a.png").write_bytes(depth_png(depth))
    read = read_depth(tmp_path / "a.png")
    assert read.min() == 0 and read.max() == 65535
    share = (depth - depth.min()) / (depth.max() - depth.min())
    assert np.abs(read / 65535 - share).max() < 1 / 65535
    assert as_levels(depth, 8).dtype == np.uint8 and as_levels(depth, 8).max() == 255
    assert not as_levels(np.full((3, 3), 7.0)).any()


def test_true_disparity_of_a_real_scene_keeps_its_order():
    """scikit-image's motorcycle (Middlebury 2014): 7 % of the pixels are unknown, marked by infinity."""
    found = importlib.util.find_spec("skimage")
    file = found and Path(found.origin).parent / "data" / "motorcycle_disp.npz"
    if not file or not file.exists():
        pytest.skip("scikit-image is not installed: pip install scikit-image")
    disparity = read_depth(file)
    known = np.isfinite(disparity)
    assert disparity.shape == (500, 741) and 0.9 < known.mean() < 0.95
    depth = inverse_depth(disparity)
    assert np.array_equal(depth[known], disparity[known]) and np.isfinite(depth).all()
    assert depth.min() == disparity[known].min() and depth.max() == disparity[known].max()
    # Left out where it is known, disparity is estimated from around to a small part of its range.
    hidden = known & (np.random.default_rng(0).random(known.shape) < 0.1)
    error = np.abs(inverse_depth(np.where(hidden, np.nan, disparity)) - disparity)[hidden]
    assert np.median(error) < 0.01 * np.ptp(depth)


@pytest.mark.parametrize("colour_type", [2, 6])
def test_all_16_bits_of_a_png_in_colour_count(tmp_path, colour_type):
    ramp = np.arange(20_000, 20_256, dtype=np.uint16).reshape(1, 256)
    channels = [ramp] * 3 + [np.full_like(ramp, 65535)] * (colour_type == 6)
    path = tmp_path / "ramp.png"
    rows = b"\0" + np.dstack(channels).astype(">u2").tobytes()
    header = struct.pack(">IIBBBBB", 256, 1, 16, colour_type, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ))  # fmt: skip
    assert np.array_equal(read_depth(path), ramp.astype(np.float32))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match="complete"):
        read_depth(path)


@pytest.mark.parametrize("suffix", ["tif", "ppm"])
def test_16_bits_in_colour_of_other_files_are_refused_in_one_line(tmp_path, suffix):
    ramp = np.dstack([np.arange(256, dtype=np.uint16).reshape(1, 256)] * 3)
    path = tmp_path / f"ramp.{suffix}"
    if suffix == "ppm":
        path.write_bytes(b"P6 256 1 65535\n" + ramp.astype(">u2").tobytes())
    else:  # a TIFF of one strip: width, height, bits, compression, photometric, offset, samples, rows, count
        tags = ((256, 256), (257, 1), (259, 1), (262, 2), (273, 8), (277, 3), (278, 1), (279, ramp.nbytes))
        entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
        entries.insert(2, struct.pack("<HHII", 258, 3, 3, 8 + ramp.nbytes + 2 + 12 * 9 + 4))
        table = struct.pack("<H", 9) + b"".join(entries) + bytes(4) + struct.pack("<3H", 16, 16, 16)
        path.write_bytes(b"II*\0" + struct.pack("<I", 8 + ramp.nbytes) + ramp.tobytes() + table)
    with pytest.raises(InputError, match="16 bits in several channels.*PNG"):
        read_depth(path)


def test_memory_and_the_file_system_are_named_as_they_are(tmp_path, monkeypatch):
    path = tmp_path / "depth.npy"
    np.save(path, np.ones((4, 4)))
    for error, kind, says in (
        (MemoryError(), OutOfMemory, "not enough memory"),
        (OSError(5, "Input/output error"), InputError, "Input/output error$"),
    ):
        monkeypatch.setattr("ldm.imaging.depth._read_npy", Mock(side_effect=error))
        with pytest.raises(kind, match=f"cannot read depth .*depth.npy: .*{says}"):
            read_depth(path)


@pytest.mark.parametrize("suffix", ["npy", "npz", *(["exr"] if importlib.util.find_spec("OpenEXR") else [])])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_only_of_a_map_that_ends_too_early_it_is_asked_whether_it_is_complete(tmp_path, suffix, share):
    path, values = tmp_path / f"map.{suffix}", np.random.default_rng(0).random((64, 48), np.float32)
    if suffix == "npy":
        np.save(path, values)
    elif suffix == "npz":
        np.savez(path, depth=values)
    else:
        import OpenEXR

        OpenEXR.File({"type": OpenEXR.scanlineimage}, {"Z": values}).write(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"is the file complete\?$"):
        read_depth(path)


@pytest.mark.parametrize("damage", ["objects", "header", "check sum"])
def test_other_faults_of_a_map_are_said_without_that_question(tmp_path, damage):
    path = tmp_path / "map.npy"
    np.save(path, np.array([{}]), allow_pickle=True)
    if damage == "header":
        path.write_bytes(b"\x93NUMPY\x01\x00\x76\x00no header" + b" " * 200)
    elif damage == "check sum":
        np.savez(path.with_suffix(".npz"), depth=np.ones((64, 64)))
        data = bytearray(path.with_suffix(".npz").read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be used") as error:
        read_depth(path)
    assert "complete" not in str(error.value) and "\n" not in str(error.value)
