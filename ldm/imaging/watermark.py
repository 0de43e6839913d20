"""The invisible mark of the published scripts: 32 bits `SDV2`, written by invisible-watermark's "dwtDct".

It changes the U channel of pixels given as BGR. The library refuses pictures under 256 x 256 = 65,536
pixels, and in flat pictures bits get lost; both are saved all the same, with a warning, because a mark is
not worth a lost picture. A payload counts as recognised with up to one bit in eight wrong: of 100,000
unmarked pictures about one would pass for SDV2.
"""

import logging
from types import ModuleType

import numpy as np

from ldm.errors import BackendUnavailable

PAYLOAD = b"SDV2"
PUBLISHED_PAYLOADS = (PAYLOAD, b"StableDiffusionV1", b"StableDiffusionV1-Inpainting")
MIN_PIXELS = 256 * 256
MAX_WRONG_BITS = 1 / 8
MIN_SIDE = 8  # one 4 x 4 block after one wavelet level

log = logging.getLogger(__name__)


def fits(image: np.ndarray) -> bool:
    """Tell whether the picture (h, w, 3) is large enough to carry a mark."""
    height, width = image.shape[:2]
    return height * width >= MIN_PIXELS and min(height, width) >= MIN_SIDE


def mark(image: np.ndarray, payload: bytes = PAYLOAD) -> np.ndarray:
    """Return a copy of the uint8 RGB picture (h, w, 3) that carries `payload`; the size must fit."""
    encoder = _library().WatermarkEncoder()
    encoder.set_watermark("bytes", payload)
    bgr = encoder.encode(np.ascontiguousarray(image[:, :, ::-1]), "dwtDct")
    return np.ascontiguousarray(bgr[:, :, ::-1])


def read(image: np.ndarray, num_bits: int) -> bytes:
    """Return `num_bits` bits read from the uint8 RGB picture; without a mark they are arbitrary."""
    decoder = _library().WatermarkDecoder("bytes", num_bits)
    return decoder.decode(np.ascontiguousarray(image[:, :, ::-1]), "dwtDct")


def recognise(image: np.ndarray) -> bytes | None:
    """Return the published payload that the picture carries, or None."""
    return next((payload for payload in PUBLISHED_PAYLOADS if carries(image, payload)), None)


def carries(image: np.ndarray, payload: bytes = PAYLOAD) -> bool:
    """Tell whether `payload` can be read from the uint8 RGB picture (h, w, 3)."""
    if not fits(image):
        return False
    wrong = np.frombuffer(read(image, 8 * len(payload)), np.uint8) ^ np.frombuffer(payload, np.uint8)
    return bool(np.unpackbits(wrong).mean() <= MAX_WRONG_BITS)


def require() -> None:
    """Import the library now. Raises: BackendUnavailable when it cannot be imported."""
    _library()


def _library() -> ModuleType:
    try:
        import imwatermark
    except Exception as error:  # beside ImportError: a broken OpenCV or NumPy raises its own kinds
        raise BackendUnavailable(
            f"the watermark library does not import ({type(error).__name__}: {error}); "
            "pip install invisible-watermark, or use --watermark off"
        ) from error
    return imwatermark
