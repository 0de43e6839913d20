"""Images as they come: every script refuses what is none in one line and takes others at their size."""

import functools
import os
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

HEIGHT, WIDTH = 21, 34  # of all good images, upright
QUICK = ("--prompt", "a", "--steps", 2, "--n_samples", 1, "--scale", 1, "--no-grid", "--precision", "full")

# script and flags -> kind of model, flags with IMAGE in them, size of the result for one of (height, width)
READERS = {
    "img2img": ("sd2", ("--init-img", "IMAGE"), lambda h, w: (h, w)),
    "inpaint": ("inpaint", ("--init-img", "IMAGE", "--mask", "mask.png"), lambda h, w: (h, w)),
    "inpaint --mask": ("inpaint", ("--init-img", "good.png", "--mask", "IMAGE"), lambda h, w: (h, w)),
    "depth2img": ("depth", ("--init-img", "IMAGE", "--depth", "depth.npy"), lambda h, w: (h, w)),
    "depth2img --depth": ("depth", ("--init-img", "good.png", "--depth", "IMAGE"), lambda h, w: (h, w)),
    "outpaint": ("inpaint", ("--init-img", "IMAGE", "--left", 8, "--up", 1), lambda h, w: (h + 1, w + 8)),
    "upscale": ("upscale", ("--init-img", "IMAGE"), lambda h, w: (8 * h, 8 * w)),
    "unclip": ("unclip-h", ("--init-img", "good.png", "IMAGE", "--H", 9, "--W", 31), lambda h, w: (9, 31)),
}
"""The tiny upscaler enlarges 8 times, the published one 4."""


def script(reader: str) -> str:
    return f"{reader.split()[0]}.py"


def flags(reader: str, file: object) -> list:
    return [file if flag == "IMAGE" else flag for flag in READERS[reader][1]]


pytestmark = pytest.mark.usefixtures("open_once")


@pytest.fixture(autouse=True)
def _beside(tmp_path):
    """Put beside the image what the scripts want with it."""
    Image.fromarray(noise(HEIGHT, WIDTH)).save(tmp_path / "good.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[5:15, 10:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    np.save(tmp_path / "depth.npy", np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)).astype(np.float32))


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, channels), np.uint8)


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """Return a PNG of these unfiltered rows, each with its 0 before it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    packed = zlib.compress(rows, 9)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@functools.cache
def bomb() -> bytes:
    """Return a PNG of 100 megapixels, all black, which is whole and has 12 kilobytes."""
    return png(10_000, 10_000, 1, 0, bytes(10_000 * (1 + 1250)))


def half_of(path: Path, **options) -> bytes:
    Image.fromarray(noise(64, 64)).save(path, **options)
    whole = path.read_bytes()
    path.unlink()
    return whole[: len(whole) // 2]


BAD = {  # name of the file -> its bytes, what the line says beside the name
    "missing.png": (None, "no such file"),
    "": (None, ""),
    ".": (None, "folder"),
    "/proc/self/mem": (None, ""),
    "empty.png": (lambda at: b"", "known format"),
    "text.png": (lambda at: b"a photo of a cat\n", "known format"),
    "page.jpg": (lambda at: b"<!DOCTYPE html><html>404", "known format"),
    "half.png": (lambda at: half_of(at / "whole.png"), "complete"),
    "half.jpg": (lambda at: half_of(at / "whole.jpg"), "complete"),
    "no pixels.png": (lambda at: png(0, 5, 8, 2, b""), ""),
    "bomb.png": (lambda at: bomb(), "10000x10000"),
    "line\nbreak.png": (lambda at: b"", "known format"),
}


@pytest.mark.few(30)
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_image_is_refused_in_one_line_before_the_model_is_read(run, tmp_path, reader, name):
    content, says = BAD[name]
    if name.startswith("/proc") and not os.path.exists(name):
        pytest.skip("Linux alone has a file there that cannot be read")
    if content is not None:
        (tmp_path / name).write_bytes(content(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    outcome = run(script(reader), "--ckpt", "nowhere.ckpt", *flags(reader, name), "--outdir", "o")
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    assert says in outcome.err and name.replace("\n", " ") in outcome.err and "nowhere" not in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("reader", READERS)
def test_a_bomb_is_refused_before_a_pixel_is_decoded(run, tmp_path, monkeypatch, reader):
    assert len(bomb()) < 20_000
    (tmp_path / "bomb.png").write_bytes(bomb())
    original = PngImagePlugin.PngImageFile.load
    decoded = []
    monkeypatch.setattr(
        PngImagePlugin.PngImageFile, "load", lambda self: decoded.append(self.size) or original(self)
    )
    started = time.process_time()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        outcome = run(script(reader), "--ckpt", "nowhere.ckpt", *flags(reader, "bomb.png"), "--outdir", "o")
    assert outcome.code == 2 and "64 megapixels" in outcome.err and not warned
    assert (10_000, 10_000) not in decoded
    assert time.process_time() - started < 20


def animated(at: Path) -> None:
    frames = [Image.fromarray(noise(HEIGHT, WIDTH)), Image.new("RGB", (WIDTH, HEIGHT))]
    frames[0].save(at, save_all=True, append_images=frames[1:])


def turned(at: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(WIDTH, HEIGHT)).save(at, exif=exif)


def palette(at: Path) -> None:
    Image.fromarray(noise(HEIGHT, WIDTH)).quantize(16).save(at, transparency=3)


def sixteen_bits(at: Path) -> None:
    values = np.random.default_rng(0).integers(1, 65536, (HEIGHT, 3 * WIDTH)).astype(">u2")
    at.write_bytes(png(WIDTH, HEIGHT, 16, 2, b"".join(b"\0" + row.tobytes() for row in values)))


GOOD = {  # name of the file -> what writes it, and what is said of it
    "animated.gif": (animated, "2 frames"),
    "animated.png": (animated, "2 frames"),
    "grey of 16 bits.png": (
        lambda at: Image.fromarray(noise(HEIGHT, WIDTH)[:, :, 0].astype(np.uint16) * 257).save(at), ""
    ),
    "colour of 16 bits.png": (sixteen_bits, "16 bits"),
    "cmyk.jpg": (lambda at: Image.fromarray(noise(HEIGHT, WIDTH)).convert("CMYK").save(at), "CMYK"),
    "turned.jpg": (turned, ""),
    "palette.png": (palette, ""),
    "alpha.webp": (lambda at: Image.fromarray(noise(HEIGHT, WIDTH, 4)).save(at, lossless=True), ""),
    "ein Ordner/Ünïcödé 猫 (1).png": (lambda at: Image.fromarray(noise(HEIGHT, WIDTH)).save(at), ""),
}  # fmt: skip


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size[::-1]


@pytest.mark.few(2)
@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("reader", [name for name in READERS if " --" not in name])  # those take grey only
def test_all_kinds_of_images_are_taken_at_their_size(run, tmp_path, tiny_weights, reader, name):
    write, says = GOOD[name]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path / name)
    kind, _, size = READERS[reader]
    outcome = run(script(reader), *tiny_weights(kind), *QUICK, *flags(reader, name), "--outdir", "o")
    assert outcome.code == 0, outcome.err
    assert says in outcome.out
    assert size_of(tmp_path / "o/samples/00000.png") == size(HEIGHT, WIDTH)


@pytest.mark.few(6)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("reader", READERS)
def test_a_side_of_one_pixel_will_do(run, tmp_path, tiny_weights, reader, shape):
    for name, channels in (("one.png", 3), ("good.png", 3), ("mask.png", 1)):
        image = np.broadcast_to(noise(*shape, 1) | 128, (*shape, 3))  # white enough for a mask
        Image.fromarray(image if channels == 3 else image[:, :, 0].copy()).save(tmp_path / name)
    np.save(tmp_path / "depth.npy", np.ones(shape, np.float32))
    kind, _, size = READERS[reader]
    outcome = run(script(reader), *tiny_weights(kind), *QUICK, *flags(reader, "one.png"), "--outdir", "o")
    assert outcome.code == 0, outcome.err
    assert size_of(tmp_path / "o/samples/00000.png") == size(*shape)


@pytest.mark.parametrize("strength", ["-0.01", "1.01", "nan", "inf", "much"])
@pytest.mark.parametrize("reader", ["img2img", "inpaint", "depth2img", "outpaint"])
def test_a_strength_outside_0_to_1_is_refused(run, tmp_path, reader, strength):
    before = sorted(tmp_path.rglob("*"))
    outcome = run(script(reader), *flags(reader, "good.png"), f"--strength={strength}", "--outdir", "o")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "--strength" in outcome.err and repr(strength) in outcome.err and "0 to 1" in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("reader", ["inpaint --mask", "depth2img --depth"])
def test_two_images_of_different_sizes_are_refused(run, tmp_path, reader):
    Image.fromarray(noise(WIDTH, HEIGHT)[:, :, 0]).save(tmp_path / "other.png")
    before = sorted(tmp_path.rglob("*"))
    outcome = run(script(reader), "--ckpt", "nowhere.ckpt", *flags(reader, "other.png"), "--outdir", "o")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert f"{WIDTH}x{HEIGHT}" in outcome.err and f"{HEIGHT}x{WIDTH}" in outcome.err
    assert sorted(tmp_path.rglob("*")) == before
