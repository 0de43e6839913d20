"""Read an image file of any common format as upright 8-bit RGB in sRGB; the only reader of images.

| in the file                 | result                                                            |
|-----------------------------|-------------------------------------------------------------------|
| EXIF orientation            | turned upright                                                    |
| alpha, palette transparency | composited over white, or kept as a fourth channel on request     |
| 16-bit grey                 | value / 257, rounded (Pillow's own conversion clips to white)     |
| 16-bit colour               | the upper 8 bits; this is logged                                  |
| colour profile, gAMA, cHRM  | converted to sRGB, which is logged, or kept on request            |
| CMYK, LAB                   | RGB by the profile, or Pillow's conversion if there is none       |
| several frames              | the first frame; this is logged                                   |
| damaged metadata, profile   | the image without them                                            |

Only common raster formats are accepted: others (EPS, PSD, FITS, PDF, ...) are rarely needed, and their
decoders are a frequent source of vulnerabilities. The size is checked before any pixel is decoded, so that a
file of a few kilobytes cannot fill the memory.
"""

import contextlib
import contextvars
import errno
import io
import logging
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, features

from ldm.errors import InputError, OutOfMemory, is_out_of_memory
from ldm.files.reading import no_file
from ldm.imaging import profiles

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
FORMATS += ("AVIF",) if "avif" in features.modules and features.check("avif") else ()
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384
MAX_BYTES = 2**30
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PNG_PARTS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # without which there is no image
JPEG_METADATA = (*range(0xE1, 0xEE), 0xEF, 0xFE)  # but not APP0 (JFIF) and APP14 (Adobe's colour transform)
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Image.Transpose that undoes it

log = logging.getLogger(__name__)
_quiet = contextvars.ContextVar("quiet", default=False)


def open_image(
    path: str | Path, *, alpha: bool | None = False, own_colours: bool = False, background: int = 255
) -> Image.Image:
    """Open the image at `path` as mode RGB, upright; with `alpha` as RGBA.

    Args:
        alpha: keep it; it is 255 everywhere if there is no transparency. None: keep it if there is any.
            Transparent pixels keep their colours.
        own_colours: do not convert the colours of an RGB profile; the profile is in `info["icc_profile"]`.
        background: grey level, 0 to 255, on which transparency is composited.

    Raises:
        InputError: the file is missing, not an image, damaged, or too large.
        OutOfMemory: there is not enough memory for it.
    """
    try:
        image = decoded(content(path), str(path))
        return converted(image, str(path), alpha=alpha, own_colours=own_colours, background=background)
    except (InputError, OutOfMemory) as error:
        raise type(error)(f"cannot open image {path}: {error}") from error


def content(path: str | Path) -> bytes:
    """Return the bytes of an image file. Raises: InputError and OutOfMemory, without the path in the text."""
    path = Path(path)
    try:
        if what := no_file(path):
            raise InputError(what)
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"it has {path.stat().st_size / 1e9:.1f} GB; at most 1 GB is accepted")
        return path.read_bytes()
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise OutOfMemory("not enough memory to read it; close other programs") from error
        raise InputError(error.strerror or str(error)) from error
    except MemoryError as error:
        raise OutOfMemory("not enough memory to read it; close other programs") from error


def decoded(data: bytes, name: str) -> Image.Image:
    """Return the first frame of an image file as it is stored, but decoded and upright.

    Raises: InputError and OutOfMemory, without the name in the text.
    """
    with _WARNINGS.noticed(name):
        try:
            image = _decoded(data, name)
        except (InputError, OutOfMemory):
            raise
        except Exception as error:  # on malicious bytes, decoders raise nearly anything
            bare = _without_metadata(data)
            if bare == data or is_out_of_memory(error):
                raise _diagnosed(data, error) from error
            try:
                image = _decoded(bare, name)
            except (InputError, OutOfMemory):
                raise
            except Exception as without:
                raise _diagnosed(data, without) from without
            if b"ICC_PROFILE\0" in data or b"iCCP" in data:
                _say("%s: its metadata are damaged and left out, with its colour profile", name)
            log.debug("%s: its metadata are damaged and left out: %s", name, _words(error))
        return _upright(image, name)


def converted(
    image: Image.Image, name: str, *, alpha: bool | None, own_colours: bool = False, background: int = 255
) -> Image.Image:
    """Convert a decoded image as `open_image` does; `name` is for messages.

    Raises: InputError and OutOfMemory, without the name in the text.
    """
    try:
        transparent = image.has_transparency_data
        rgb, profile = _with_colours(image, name, own_colours)
        if alpha or (alpha is None and transparent):
            result = rgb.convert("RGBA")
        else:
            if transparent and rgb.getextrema()[3][0] < 255:
                _say("%s is partly transparent; it is composited over white", name)
            result = to_rgb(rgb, background)
    except (InputError, OutOfMemory):
        raise
    except Exception as error:
        raise _out_of_memory(image.size) if is_out_of_memory(error) else InputError(_words(error)) from error
    result.info = {"icc_profile": profile} if profile else {}
    return result


def to_rgb(image: Image.Image, background: int = 255) -> Image.Image:
    """Convert any mode to RGB: composite transparency over a grey level, scale 16 bits without clipping."""
    if not image.has_transparency_data:
        return _eight_bits(image).convert("RGB")
    ground = Image.new("RGBA", image.size, (background,) * 3 + (255,))
    return Image.alpha_composite(ground, to_rgba(image)).convert("RGB")


def to_rgba(image: Image.Image) -> Image.Image:
    """Convert any mode to RGBA: a transparent colour or palette becomes alpha, 16 bits are scaled."""
    converted = _eight_bits(image)
    if image.mode.startswith("I") and (clear := image.info.get("transparency")) is not None:
        opaque = np.asarray(image).astype(np.int64) != clear  # in 16 bits: two greys may share the upper 8
        converted.putalpha(Image.fromarray(np.uint8(255) * opaque))
    return converted.convert("RGBA")


def deep_colour(data: bytes) -> np.ndarray | None:
    """Return the pixels (h, w, 3 or 4) uint16 of a PNG file with 16 bits in several channels.

    Pillow keeps the upper 8 bits alone. But PNG filters bytes, not samples, so the upper and the lower bytes
    of all samples are two images of 8 bits. None for other files; two channels become (h, w, 4).

    Raises: InputError and OutOfMemory, without a name in the text.
    """
    if not data.startswith(PNG) or len(data) < 33 or data[24] != 16 or data[25] not in (2, 4, 6):
        return None
    width, height, interlaced = *struct.unpack(">II", data[16:24]), data[28]
    check_size(width, height)
    size = 2 * {2: 3, 4: 2, 6: 4}[data[25]]
    shapes = [(h, 1 + size * w) for w, h in _passes(width, height, bool(interlaced))]
    parts = _png_parts(data)
    try:
        packed = b"".join(part[8:-4] for kind, part in parts if kind == b"IDAT")
        total = sum(h * row for h, row in shapes)
        unpacked = np.frombuffer(zlib.decompressobj().decompress(packed, total), np.uint8)
        ends = np.cumsum([h * row for h, row in shapes])[:-1]
        passes = [part.reshape(shape) for part, shape in zip(np.split(unpacked, ends), shapes, strict=True)]
    except (zlib.error, ValueError) as error:
        why = "it ends too early; is the file complete?" if _is_cut(data, "") else "its pixels are damaged"
        raise InputError(why) from error
    header = data[16:24] + b"\x08" + data[25:29]
    exif = b"".join(part for kind, part in parts if kind == b"eXIf")
    mode, halves = "RGB" if data[25] == 2 else "RGBA", []
    for first in (1, 2):  # the upper byte of a sample, the lower
        half = b"".join(
            np.concatenate([rows[:, :1], rows[:, first::2]], axis=1).tobytes() for rows in passes
        )
        pixels = _chunk(b"IDAT", zlib.compress(half, 1))
        whole = PNG + _chunk(b"IHDR", header) + exif + pixels + _chunk(b"IEND", b"")
        halves.append(np.asarray(decoded(whole, "").convert(mode)).astype(np.uint16))
    return 256 * halves[0] + halves[1]


def _passes(width: int, height: int, interlaced: bool) -> list[tuple[int, int]]:
    """Return width and height of the images whose rows follow each other in a PNG file; 7 if interlaced."""
    if not interlaced:
        return [(width, height)]
    grid = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in grid]
    return [(w, h) for w, h in sizes if w > 0 and h > 0]


def is_deep(data: bytes) -> bool:
    """Return whether an image file has 16 bits in several channels, of which Pillow reads the upper 8."""
    try:
        with _WARNINGS.noticed("an image"):
            return _is_deep(Image.open(io.BytesIO(data), formats=FORMATS))
    except Exception:  # `decoded` reports what is wrong
        return False


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Log what becomes of images for debugging only, as where thousands of them are read."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


def _say(message: str, *words: object) -> None:
    log.log(logging.DEBUG if _quiet.get() else logging.INFO, message, *words)


class _Warnings:
    """Turns Pillow's warnings into debug lines, in several threads at once: the filters belong to all."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0

    @contextlib.contextmanager
    def noticed(self, name: str) -> Iterator[None]:
        with self.lock:
            if not self.users:
                self.caught = warnings.catch_warnings(record=True)
                self.list = self.caught.__enter__()
                warnings.simplefilter("always")
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                while self.list:
                    log.debug("%s: %s", name, _words(self.list.pop().message))
                self.users -= 1
                if not self.users:
                    self.caught.__exit__(None, None, None)


_WARNINGS = _Warnings()


def _decoded(data: bytes, name: str) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    check_size(*image.size)
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:  # a second frame that is damaged
        frames = 1
    if frames > 1:
        _say("%s has %d frames; only the first is used", name, frames)
    if _is_deep(image):
        _say("%s has 16 bits per channel; the upper 8 are used", name)
        if "transparency" in image.info:  # Pillow compares this colour with the upper bits
            image.info["transparency"] = tuple(v >> 8 for v in image.info["transparency"])
    if image.info.get("icc_profile", b"") is None:  # of a JPEG file
        _say("%s: a part of its colour profile is missing; it is ignored", name)
    image.load()
    return image


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        turn = TURNS.get(image.getexif().get(0x0112))
    except Exception as error:
        log.debug("%s: its EXIF data are damaged and left out: %s", name, _words(error))
        turn = None
    return image if turn is None else image.transpose(Image.Transpose(turn))


def _with_colours(image: Image.Image, name: str, own: bool) -> tuple[Image.Image, bytes | None]:
    """Return an image as RGB or RGBA, and the profile of its colours; None is sRGB."""
    try:
        profile = profiles.profile_of(image)
        mode = None if profile is None else profiles.mode_of(profile)
        if mode in ("L", "CMYK", "LAB"):
            if _mode_of(image) != mode:
                raise ValueError(f"it is for {mode} images")
            return _by_profile(image, profile, name), None
        if mode == "RGB" and image.mode in ("CMYK", "LAB"):
            raise ValueError("it is for RGB images")
        if mode == "RGB" and not profiles.is_srgb(profile):
            return _of_rgb_profile(image, profile, name, own)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _say("%s: its colour profile cannot be used and is ignored: %s", name, _words(error))
    if image.mode in ("CMYK", "LAB"):
        _say("%s is %s; it is converted to RGB, ignoring colour profiles", name, image.mode)
    return _plain(image), None


def _plain(image: Image.Image) -> Image.Image:
    return to_rgba(image) if image.has_transparency_data else to_rgb(image)


def _of_rgb_profile(
    image: Image.Image, profile: bytes, name: str, own: bool
) -> tuple[Image.Image, bytes | None]:
    pixels, label = np.asarray(_plain(image)), profiles.name_of(profile)
    if own and image.mode not in ("1", "L", "LA", "I", "I;16"):
        try:
            profiles.from_srgb(pixels[:1, :1], profile)  # some profiles only describe an input device
            _say("%s: its colour profile (%s) is kept, and the model sees sRGB", name, label)
            return _plain(image), profile
        except Exception as error:
            log.debug("%s: no conversion to its colour profile: %s", name, _words(error))
    _say("%s: its colours are converted to sRGB from its profile (%s)", name, label)
    return Image.fromarray(profiles.to_srgb(pixels, profile)), None


def _mode_of(image: Image.Image) -> str:
    """Return the mode of an image without alpha or depth."""
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    return "L" if grey else image.mode


def _by_profile(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Convert a grey, CMYK or LAB image to sRGB, RGB or RGBA."""
    label = "LAB" if image.mode == "LAB" else f"from its profile ({profiles.name_of(profile)})"
    alpha = to_rgba(image).getchannel("A") if image.has_transparency_data else None
    plain = _eight_bits(image)
    rgb = profiles.srgb_image(plain.convert("L") if _mode_of(image) == "L" else plain, profile)
    if profiles.mode_of(profile) != "L" or _differs(rgb, plain):
        _say("%s: its colours are converted to sRGB %s", name, label.replace("LAB", "from LAB"))
    if alpha is not None:
        rgb.putalpha(alpha)
    return rgb


def _differs(rgb: Image.Image, grey: Image.Image) -> bool:
    a, b = np.asarray(rgb.convert("L"), np.int16), np.asarray(grey.convert("L"), np.int16)
    return bool(np.abs(a - b).max() > profiles.NEAR)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 0..65535 to 0..255: 257 = 65535 / 255. Other modes are left as they are."""
    if image.mode == "F":
        raise InputError("the range of floating-point pixels is not defined; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    grey = np.clip(np.asarray(image).astype(np.float64), 0, 65535)
    return Image.fromarray(np.rint(grey / 257).astype(np.uint8))


def _is_deep(image: Image.Image) -> bool:
    """Return whether the file has 16 bits in several channels; only before the pixels are decoded."""
    arguments = image.tile[0].args if image.tile else ()
    arguments = arguments if isinstance(arguments, tuple) else (arguments,)
    deep = any(re.search(";16[BLN]", str(each)) for each in arguments)
    deep_ppm = image.format == "PPM" and any(isinstance(each, int) and each > 255 for each in arguments)
    return len(image.getbands()) > 1 and (deep or deep_ppm)


def check_size(width: int, height: int) -> None:
    """Raise InputError for an image without pixels, or one that is too large."""
    if not width * height:
        raise InputError(f"it is {width}x{height}: it has no pixels")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"it is {width}x{height}; at most {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} pixels per "
            "side are accepted: make it smaller first"
        )


def _diagnosed(data: bytes, error: Exception) -> InputError | OutOfMemory:
    """Return what to say of a file that cannot be decoded."""
    words = _words(error)
    if is_out_of_memory(error) or "out of memory" in words:
        return _out_of_memory(None)
    if isinstance(error, Image.DecompressionBombError):
        return InputError(f"it is larger than {MAX_PIXELS // 10**6} megapixels: make it smaller first")
    if _is_cut(data, words):
        return InputError("it ends too early; is the file complete?")
    if isinstance(error, Image.UnidentifiedImageError) and (kind := _tiff_kind(data)):
        return InputError(f"it is a TIFF file with {kind}, which is not supported; save it with one channel")
    if isinstance(error, Image.UnidentifiedImageError):
        return InputError(f"not an image in a known format ({', '.join(FORMATS)})")
    try:
        bytearray(16 * MAX_SIDE * 1024)  # decoders call a lack of memory a broken file
    except MemoryError:
        return _out_of_memory(None)
    return InputError(f"it is damaged ({words})")


def _out_of_memory(size: tuple[int, int] | None) -> OutOfMemory:
    what = "it" if size is None else f"{size[0]}x{size[1]} pixels"
    return OutOfMemory(f"not enough memory for {what}; close other programs, or make it smaller first")


def _is_cut(data: bytes, words: str) -> bool:
    """Return whether an image file ends too early."""
    if data.startswith(PNG):
        return b"IEND" not in data
    if data.startswith(JPEG):
        return b"\xff\xd9" not in data[data.rfind(b"\xff\xda") :]
    if data.startswith(b"RIFF") and len(data) >= 8:
        return struct.unpack("<I", data[4:8])[0] + 8 > len(data)
    if data[:4] in (b"II*\0", b"MM\0*") and len(data) >= 8:
        order = "<I" if data[:2] == b"II" else ">I"
        return struct.unpack(order, data[4:8])[0] >= len(data) or "truncated" in words
    return any(word in words.lower() for word in ("truncated", "premature", "end of file", "not enough"))


def _tiff_kind(data: bytes) -> str | None:
    """Return how the pixels of a TIFF file are stored; None if it is another file, or a damaged one."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        channels, (bits, *_), (kind, *_) = tags.get(277, 1), tags.get(258, (1,)), tags.get(339, (1,))
    except Exception:  # it is damaged, or no TIFF file
        return None
    of = {2: " signed", 3: " floating-point"}.get(kind, "")
    return f"{channels} channel{'s' if channels > 1 else ''} of {bits}{of} bits"


def _words(error: object) -> str:
    """Return an error as one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _png_parts(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the type and the bytes of every whole chunk of a PNG file."""
    parts, at = [], len(PNG)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        parts.append((kind, data[at : at + 12 + length]))
        at += 12 + length
    return parts


def _chunk(kind: bytes, part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))


def _without_metadata(data: bytes) -> bytes:
    """Return a PNG or JPEG file without what its pixels do not need; other files as they are."""
    if data.startswith(PNG):
        return PNG + b"".join(part for kind, part in _png_parts(data) if kind in PNG_PARTS)
    if not data.startswith(JPEG):
        return data
    kept, at = [JPEG], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = struct.unpack(">H", data[at + 2 : at + 4])[0]
        is_cut = data[at + 1] == 0xEE and length < 14  # of APP14, the colour transform stands in byte 11
        kept += [] if is_cut or data[at + 1] in JPEG_METADATA else [data[at : at + 2 + length]]
        at += 2 + length
    return b"".join([*kept, data[at:]])
