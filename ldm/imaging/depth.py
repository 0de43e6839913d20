"""Read depth maps from files, convert them to inverse depth, and write them.

A map (h, w) contains inverse depth unless stated otherwise: larger is nearer, in any unit and with any
offset, because models see it normalised to -1..1. The values of a file are used as they are:

| file                        | values                                                              |
|-----------------------------|---------------------------------------------------------------------|
| PNG, TIFF, ... in grey      | 8, 16 or 32 bits, or floating point; also RGB with equal channels,  |
|                             | of 8 bits, or of 16 in PNG                                          |
| NPY, NPZ                    | any real numbers (h, w); no pickles                                 |
| EXR                         | one channel, or RGB with equal channels; read by OpenEXR            |
| PFM                         | floating point                                                      |

NaN and infinity mark pixels of unknown depth, as in measured disparity; they are filled from neighbours.
"""

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ldm.errors import BackendUnavailable, InputError, OutOfMemory, is_out_of_memory
from ldm.files.reading import no_file
from ldm.imaging.files import MAX_PIXELS, check_size, content, decoded, deep_colour, is_deep
from ldm.imaging.pull_push import pull_push

INVERSIONS = ("flip", "reciprocal")
EXR, NPY, NPZ = b"v/1\x01", b"\x93NUMPY", b"PK\x03\x04"
CUT = (  # what the readers of NPY, NPZ and EXR say of files that end too early
    "greater than file size", "no data left", "not a zip file", "file has 0 parts", "truncated",
    "unexpected end", "reading array header", "read all data",
)  # fmt: skip
LEVELS = {8: np.uint8, 16: np.uint16}

log = logging.getLogger(__name__)


def read_depth(path: str | Path) -> np.ndarray:
    """Return the values (h, w) float32 of a depth file, NaN or infinite where the depth is unknown.

    Raises:
        InputError: the file is missing, damaged, too large, or does not contain one value per pixel.
        OutOfMemory: there is not enough memory for it.
        BackendUnavailable: it is an EXR file, and OpenEXR is not installed.
    """
    path = Path(path)
    try:
        if what := no_file(path):
            raise InputError(what)
        with path.open("rb") as file:
            magic = file.read(8)
        readers = {EXR: _read_exr, NPY: _read_npy, NPZ: _read_npz}
        read = next((reader for mark, reader in readers.items() if magic.startswith(mark)), _read_image)
        values = _one_channel(read(path))
        check_size(*values.shape[::-1])
        with np.errstate(over="ignore"):  # values beyond float32 become infinite, and so unknown
            return np.ascontiguousarray(values, np.float32)
    except (InputError, OutOfMemory, BackendUnavailable) as error:
        if "not an image" in str(error):
            raise InputError(f"cannot read depth {path}: {error}, and no EXR, NPY or NPZ file") from error
        raise type(error)(f"cannot read depth {path}: {error}") from error
    except Exception as error:  # on malicious bytes, decoders raise nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if is_out_of_memory(error):
            raise OutOfMemory(f"cannot read depth {path}: there is not enough memory for it") from error
        if isinstance(error, OSError) and error.strerror:  # from the file system
            raise InputError(f"cannot read depth {path}: {error.strerror}") from error
        is_cut = isinstance(error, EOFError) or any(words in reason.lower() for words in CUT)
        raise InputError(
            f"cannot read depth {path}: "
            + ("it ends too early; is the file complete?" if is_cut else f"it cannot be used ({reason})")
        ) from error


def inverse_depth(values: np.ndarray, invert: str | None = None) -> np.ndarray:
    """Return inverse depth (h, w) float32 of a map (h, w), with unknown pixels filled in.

    Args:
        invert: for maps in which larger values are farther. "flip" reverses the range; "reciprocal" takes
            1 / value, which is correct for distances from the camera, such as metres; values up to 0 are then
            unknown.

    Raises:
        InputError: the map has another shape or no known value, or `invert` is unknown.
    """
    depth = known_depth(values, invert)
    known = np.isfinite(depth)
    if unknown := int((~known).sum()):
        log.info(
            "the depth map has no value for %d of %d pixels; they are filled from their neighbours",
            unknown,
            depth.size,
        )
        values, mask = (torch.from_numpy(x)[None, None] for x in (depth, known))
        depth = pull_push(values, mask)[0, 0].numpy()
    return depth


def known_depth(values: np.ndarray, invert: str | None = None) -> np.ndarray:
    """Return inverse depth (h, w) float32 as `inverse_depth` does, but NaN where it is unknown."""
    if invert not in (None, *INVERSIONS):
        raise InputError(f"depth inversion {invert!r}: expected one of {', '.join(INVERSIONS)}, or none")
    if values.ndim != 2 or not values.size:
        raise InputError(f"the depth map has shape {values.shape}; expected (height, width)")
    depth = np.where(np.isfinite(values), values, np.nan).astype(np.float32)
    if invert == "reciprocal":
        depth = 1 / np.where(depth > 0, depth, np.float32("nan"))
    if not np.isfinite(depth).any():
        raise InputError("the depth map has no known value: every pixel is NaN, infinite or not a distance")
    if invert == "flip":
        depth = np.nanmin(depth) + np.nanmax(depth) - depth
    return depth


def as_levels(depth: np.ndarray, bits: int = 16) -> np.ndarray:
    """Return a map (h, w) scaled to the full range of 8 or 16 bits, nearest brightest; a flat map is black.

    8-bit values are truncated, as in the reference demo; 16-bit values are rounded, so that they can be read
    back accurately.
    """
    top = 2**bits - 1
    depth = depth.astype(np.float64)
    extent = depth.max() - depth.min()
    share = (depth - depth.min()) / extent if extent > 0 else np.zeros_like(depth)
    return (top * share if bits == 8 else np.rint(top * share)).astype(LEVELS[bits])


def depth_png(depth: np.ndarray) -> bytes:
    """Return the bytes of a 16-bit PNG file of a map (h, w)."""
    buffer = io.BytesIO()
    Image.fromarray(as_levels(depth)).save(buffer, "PNG")
    return buffer.getvalue()


def _one_channel(values: np.ndarray) -> np.ndarray:
    """Return an array with one value per pixel as (h, w): further axes of length 1 or equal channels go."""
    shape = values.shape
    if values.dtype.kind not in "biuf":
        raise InputError(f"it contains {values.dtype} values; expected real numbers (height, width)")
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    while values.ndim > 2 and values.shape[0] == 1 and values.shape[2:] not in ((3,), (4,)):
        values = values[0]  # but not of a colour image one pixel high
    if values.ndim == 3 and values.shape[2] in (3, 4):
        grey = values[..., 0]
        if not all(np.array_equal(grey, values[..., i], equal_nan=grey.dtype.kind == "f") for i in (1, 2)):
            raise InputError(
                "it is in colour; expected one grey value per pixel (a colour map cannot be converted back)"
            )
        values = grey
    if values.ndim != 2:
        raise InputError(f"it contains an array of shape {shape}; expected (height, width)")
    return values


def _read_image(path: Path) -> np.ndarray:
    data = content(path)
    if (deep := deep_colour(data)) is not None:
        return deep
    if is_deep(data):
        raise InputError(
            "it has 16 bits in several channels, which are read from PNG files only; save it as PNG, or with "
            "one channel"
        )
    image = decoded(data, str(path))
    is_grey = image.mode in ("1", "L", "F") or image.mode.startswith("I")
    return np.asarray(image if is_grey else image.convert("RGB"))


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)  # mapped, so that a large header costs no memory


def _read_npz(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
    if len(entries) != 1:
        raise InputError(f"it contains {', '.join(sorted(entries)[:4]) or 'nothing'}; expected one array")
    (name, size), = entries.items()  # fmt: skip
    if size > 8 * MAX_PIXELS + 2**16:
        raise InputError(
            f"its array takes {size / 1e9:.1f} GB; at most {MAX_PIXELS // 10**6} megapixels are accepted"
        )
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name]


def _read_exr(path: Path) -> np.ndarray:
    """Read an EXR file with one channel of any name, or with R, G and B."""
    try:
        import OpenEXR
    except ImportError as error:
        raise BackendUnavailable("EXR files need OpenEXR: pip install openexr") from error
    with OpenEXR.File(str(path), header_only=True) as file:
        (x_0, y_0), (x_1, y_1) = (map(int, corner) for corner in file.header()["dataWindow"])
        names = [channel.name for channel in file.header()["channels"]]
    check_size(max(x_1 - x_0 + 1, 0), max(y_1 - y_0 + 1, 0))
    if len(names) != 1 and not {"R", "G", "B"} <= set(names) <= {"R", "G", "B", "A"}:
        raise InputError(f"its channels are {', '.join(names[:6])}; expected one, or R, G, B")
    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = file.channels()
        wanted = names if len(names) == 1 else ["R", "G", "B"]
        return np.dstack([channels[name].pixels for name in wanted])
