"""Depth maps as files: read them from anywhere, bring them to inverse depth, write them.

A map (h, w) holds inverse depth where it is not said otherwise: larger is nearer, in any unit and from any
zero, because models see it stretched to -1..1. What a file holds is taken as it is:

| file                        | values                                                              |
|-----------------------------|---------------------------------------------------------------------|
| PNG, TIFF, ... of one grey  | 8, 16 or 32 bits, or floating point; red, green and blue may be equal |
| NPY, NPZ                    | any real numbers (h, w); no pickles                                 |
| EXR                         | one channel, or equal red, green and blue; read by OpenEXR          |
| PFM                         | floating point                                                      |

NaN and infinity mark pixels of unknown depth, as in measured disparity; what is around them spreads there.
"""

import io
import logging
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ldm.errors import BackendUnavailable, InputError
from ldm.imaging.files import FORMATS, MAX_PIXELS, MAX_SIDE
from ldm.imaging.spread import spread

INVERSIONS = ("flip", "reciprocal")
EXR, NPY, NPZ = b"v/1\x01", b"\x93NUMPY", b"PK\x03\x04"
LEVELS = {8: np.uint8, 16: np.uint16}

log = logging.getLogger(__name__)


def read_depth(path: str | Path) -> np.ndarray:
    """Return the values (h, w) float32 of a depth file, NaN or infinite where it knows none.

    Raises:
        InputError: the file is missing, damaged, too large, or holds no map of one value a pixel.
        BackendUnavailable: an EXR file, and no OpenEXR.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read depth {path}: {'a folder' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as file:
            magic = file.read(8)
        readers = {EXR: _read_exr, NPY: _read_npy, NPZ: _read_npz}
        read = next((reader for mark, reader in readers.items() if magic.startswith(mark)), _read_picture)
        values = _one_channel(read(path))
        _check_size(*values.shape)
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and so unknown
            return np.ascontiguousarray(values, np.float32)
    except (InputError, BackendUnavailable) as error:
        raise type(error)(f"cannot read depth {path}: {error}") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join((*FORMATS, "EXR", "NPY", "NPZ"))
        raise InputError(f"cannot read depth {path}: not in a known format ({known})") from error
    except Exception as error:  # decoders meet hostile bytes and raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read depth {path}: {reason}; is the file complete?") from error


def inverse_depth(values: np.ndarray, invert: str | None = None) -> np.ndarray:
    """Return inverse depth (h, w) float32 of any map (h, w), all of it known.

    Args:
        invert: where larger values are farther: "flip" turns the range around, "reciprocal" takes 1 / value,
            which is right for distances from the camera in metres, say; none of those is 0.

    Raises:
        InputError: another shape, nothing known, or no such inversion.
    """
    if invert not in (None, *INVERSIONS):
        raise InputError(f"depth inversion {invert!r}: expected one of {', '.join(INVERSIONS)}, or none")
    if values.ndim != 2 or not values.size:
        raise InputError(f"the depth map is of shape {values.shape}; expected (height, width)")
    depth = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
    if invert == "reciprocal":
        depth = 1 / np.where(depth > 0, depth, np.float32("nan"))
    known = np.isfinite(depth)
    unknown = int((~known).sum())
    if unknown == depth.size:
        raise InputError("the depth map holds no value at all: every pixel is NaN, infinite or no distance")
    if invert == "flip":
        depth = np.nanmin(depth) + np.nanmax(depth) - depth
    if unknown:
        log.info(
            "the depth map knows nothing of %d of %d pixels: their neighbours spread there",
            unknown,
            depth.size,
        )
        values, mask = (torch.from_numpy(x)[None, None] for x in (depth, known))
        depth = spread(values, mask)[0, 0].numpy()
    return depth


def as_levels(depth: np.ndarray, bits: int = 16) -> np.ndarray:
    """Return a map (h, w) stretched to all levels of 8 or 16 bits, nearest brightest; a flat map is black.

    8 bits are truncated, as the published demo shows them; 16 bits are rounded, to be read back.
    """
    top = 2**bits - 1
    depth = depth.astype(np.float64)
    extent = depth.max() - depth.min()
    share = (depth - depth.min()) / extent if extent > 0 else np.zeros_like(depth)
    return (top * share if bits == 8 else np.rint(top * share)).astype(LEVELS[bits])


def png_of(depth: np.ndarray) -> bytes:
    """Return the PNG file, 16 bits, of a map (h, w)."""
    buffer = io.BytesIO()
    Image.fromarray(as_levels(depth)).save(buffer, "PNG")
    return buffer.getvalue()


def _one_channel(values: np.ndarray) -> np.ndarray:
    """Return the (h, w) of what may have more axes, if they hold one value a pixel."""
    shape = values.shape
    if values.dtype.kind not in "biuf":
        raise InputError(f"it holds {values.dtype}; expected real numbers (height, width)")
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    while values.ndim > 2 and values.shape[0] == 1 and values.shape[2:] not in ((3,), (4,)):
        values = values[0]  # but not of a picture of one row
    if values.ndim == 3 and values.shape[2] in (3, 4):
        grey = values[..., 0]
        if not all(np.array_equal(grey, values[..., i], equal_nan=grey.dtype.kind == "f") for i in (1, 2)):
            raise InputError(
                "it is in colour; expected one grey value a pixel (colours of a depth map cannot be undone)"
            )
        values = grey
    if values.ndim != 2:
        raise InputError(f"it holds an array of shape {shape}; expected (height, width)")
    return values


def _check_size(height: int, width: int) -> None:
    if not height * width:
        raise InputError(f"it is {width}x{height}: it has no pixels")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise InputError(
            f"it is {width}x{height}; at most {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE} a side are "
            "accepted: make it smaller first"
        )


def _read_picture(path: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
        with Image.open(path, formats=FORMATS) as image:
            _check_size(image.height, image.width)
            image.load()
            upright = ImageOps.exif_transpose(image)
            is_grey = upright.mode in ("1", "L", "F") or upright.mode.startswith("I")
            return np.asarray(upright if is_grey else upright.convert("RGB"))


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: the header alone costs no memory


def _read_npz(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
    if len(entries) != 1:
        raise InputError(f"it holds {', '.join(sorted(entries)[:4]) or 'nothing'}; expected one array")
    (name, size), = entries.items()  # fmt: skip
    if size > 8 * MAX_PIXELS + 2**16:
        raise InputError(f"its array takes {size / 1e9:.1f} GB; at most {MAX_PIXELS // 10**6} megapixels")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def _read_exr(path: Path) -> np.ndarray:
    """Read an EXR file of one channel, whatever its name, or of R, G and B."""
    try:
        import OpenEXR
    except ImportError as error:
        raise BackendUnavailable("EXR files need OpenEXR: pip install openexr") from error
    with OpenEXR.File(str(path), header_only=True) as file:
        (x_0, y_0), (x_1, y_1) = (map(int, corner) for corner in file.header()["dataWindow"])
        names = [channel.name for channel in file.header()["channels"]]
    _check_size(max(y_1 - y_0 + 1, 0), max(x_1 - x_0 + 1, 0))
    if len(names) != 1 and not {"R", "G", "B"} <= set(names) <= {"R", "G", "B", "A"}:
        raise InputError(f"its channels are {', '.join(names[:6])}; expected one, or R, G, B")
    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = file.channels()
        wanted = names if len(names) == 1 else ["R", "G", "B"]
        return np.dstack([channels[name].pixels for name in wanted])
