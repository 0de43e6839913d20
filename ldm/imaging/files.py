"""Open a picture from anywhere as upright 8-bit RGB, or say in one line why not.

| given                       | becomes                                                         |
|-----------------------------|-----------------------------------------------------------------|
| EXIF orientation            | turned upright                                                  |
| alpha, palette transparency | laid on white (hidden colours of transparent pixels never show)  |
| 16 bit grey                 | value / 257, rounded (Pillow's own conversion clips it to white) |
| CMYK, grey, palette, 1 bit  | RGB by Pillow; an embedded colour profile is ignored            |
| several frames              | the first one, with a line in the log                           |

Only common raster formats are tried: the rest (EPS, PSD, FITS, PDF, ...) are rarely a wish and
often a hole. The size is checked before a pixel is decoded, against pictures of a few kilobytes that
would fill the memory.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ldm.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 64_000_000
MAX_SIDE = 16_384

log = logging.getLogger(__name__)


def open_image(path: str | Path) -> Image.Image:
    """Open the picture at `path` as mode RGB, upright.

    Raises: InputError when the file is missing, not a picture, damaged, or too large.
    """
    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"cannot open picture {path}: {what}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path, formats=FORMATS) as image:
                _check_size(path, image)
                if getattr(image, "n_frames", 1) > 1:
                    log.info("%s has %d frames; the first is used", path, image.n_frames)
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InputError(f"cannot open picture {path}: not a picture in a known format ({known})") from error
    except Exception as error:  # decoders meet hostile bytes and raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot open picture {path}: {reason}; is the file complete?") from error


def to_rgb(image: Image.Image, background: int = 255) -> Image.Image:
    """Convert any mode to RGB: transparency is laid on a grey level, 16 bits are scaled, not clipped."""
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it as 8 or 16 bit")
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, (background,) * 3 + (255,))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _eight_bits(grey: np.ndarray) -> np.ndarray:
    """Scale 0..65535 to 0..255: 257 = 65535 / 255."""
    return np.rint(np.clip(grey.astype(np.float64), 0, 65535) / 257).astype(np.uint8)


def _check_size(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"picture {path} is {width}x{height}; at most {MAX_PIXELS // 10**6} megapixels "
            f"and {MAX_SIDE} a side are accepted: make it smaller first"
        )
    if width == 0 or height == 0:
        raise InputError(f"picture {path} is {width}x{height}: it has no pixels")
