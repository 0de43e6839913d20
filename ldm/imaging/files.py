"""Open an image file of any common format as upright 8-bit RGB.

| in the file                 | result                                                           |
|-----------------------------|------------------------------------------------------------------|
| EXIF orientation            | turned upright                                                   |
| alpha, palette transparency | composited over white, or kept as a fourth channel on request    |
| 16-bit grey                 | value / 257, rounded (Pillow's own conversion clips to white)    |
| 16-bit colour               | the upper 8 bits; this is logged                                 |
| CMYK, grey, palette, 1 bit  | RGB by Pillow, ignoring embedded colour profiles; CMYK is logged |
| several frames              | the first frame; this is logged                                  |

Only common raster formats are accepted: others (EPS, PSD, FITS, PDF, ...) are rarely needed, and their
decoders are a frequent source of vulnerabilities. The size is checked before any pixel is decoded, so that a
file of a few kilobytes cannot fill the memory.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ldm.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384

log = logging.getLogger(__name__)


def open_image(path: str | Path, *, alpha: bool = False) -> Image.Image:
    """Open the image at `path` as mode RGB, upright; with `alpha` as RGBA.

    The alpha of an image without transparency is 255 everywhere. Transparent pixels keep their colours.

    Raises:
        InputError: the file is missing, not an image, damaged, or too large.
    """
    path = Path(path)
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "not a file" if path.exists() else "no such file"
        raise InputError(f"cannot open image {path}: {what}")
    try:
        with _recognised(path) as image:
            _check_size(path, image)
            if getattr(image, "n_frames", 1) > 1:
                log.info("%s has %d frames; only the first is used", path, image.n_frames)
            if len(image.getbands()) > 1 and ";16" in _raw_mode(image):
                log.info("%s has 16 bits per channel; the upper 8 are used", path)
                if "transparency" in image.info:  # Pillow compares this colour with the upper bits
                    image.info["transparency"] = tuple(v >> 8 for v in image.info["transparency"])
            if image.mode == "CMYK":
                log.info("%s is CMYK; it is converted to RGB, ignoring colour profiles", path)
            image.load()
            if not alpha and image.has_transparency_data and not _is_opaque(image):
                log.info("%s is partly transparent; it is composited over white", path)
            upright = ImageOps.exif_transpose(image)
            return to_rgba(upright) if alpha else to_rgb(upright)
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InputError(f"cannot open image {path}: not an image in a known format ({known})") from error
    except Exception as error:  # on malicious bytes, decoders raise nearly anything
        if isinstance(error, OSError) and error.strerror:  # from the file system
            raise InputError(f"cannot open image {path}: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot open image {path}: {reason}; is the file complete?") from error


def _is_opaque(image: Image.Image) -> bool:
    return to_rgba(image).getextrema()[3][0] == 255


def has_alpha(path: str | Path) -> bool:
    """Return whether the image at `path` has transparency, used or not; False if it cannot be opened."""
    try:
        with _recognised(Path(path)) as image:
            return image.has_transparency_data
    except Exception:  # `open_image` reports what is wrong
        return False


@contextmanager
def _recognised(path: Path) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
            yield image


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


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 0..65535 to 0..255: 257 = 65535 / 255. Other modes are left as they are."""
    if image.mode == "F":
        raise ValueError("the range of floating-point pixels is not defined; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    grey = np.clip(np.asarray(image).astype(np.float64), 0, 65535)
    return Image.fromarray(np.rint(grey / 257).astype(np.uint8))


def _raw_mode(image: Image.Image) -> str:
    """Return the pixel layout in the file, such as RGB;16B, if the decoder gets it."""
    arguments = image.tile[0].args if image.tile else ()
    return " ".join(map(str, arguments)) if isinstance(arguments, tuple) else str(arguments)


def _check_size(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"image {path} is {width}x{height}; at most {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} "
            "pixels per side are accepted: make it smaller first"
        )
    if width == 0 or height == 0:
        raise InputError(f"image {path} is {width}x{height}: it has no pixels")
