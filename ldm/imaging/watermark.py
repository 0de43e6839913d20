"""The invisible watermark of the reference scripts: 32 bits `SDV2`, by invisible-watermark's "dwtDct" method.

It changes the U channel of BGR pixels. The library refuses images under 256 x 256 = 65,536 pixels, and flat
images lose bits; both are still saved, with a message, because a missing watermark is no reason to lose an
image. A payload is recognised with up to one bit in eight wrong: about one of 100,000 unmarked images would
be taken for SDV2.
"""

import logging
from types import ModuleType

import numpy as np

from ldm.errors import BackendUnavailable

PAYLOAD = b"SDV2"
REFERENCE_PAYLOADS = (PAYLOAD, b"StableDiffusionV1", b"StableDiffusionV1-Inpainting")
MIN_PIXELS = 256 * 256
MAX_WRONG_BITS = 1 / 8
MIN_SIDE = 8  # gives one 4 x 4 block after one wavelet level

log = logging.getLogger(__name__)


def fits(image: np.ndarray) -> bool:
    """Return whether the image (h, w, 3) is large enough for a watermark."""
    height, width = image.shape[:2]
    return height * width >= MIN_PIXELS and min(height, width) >= MIN_SIDE


def mark(image: np.ndarray, payload: bytes = PAYLOAD) -> np.ndarray:
    """Return a copy of the uint8 RGB image (h, w, 3) that carries `payload`; it must be large enough."""
    encoder = _library().WatermarkEncoder()
    encoder.set_watermark("bytes", payload)
    bgr = encoder.encode(np.ascontiguousarray(image[:, :, ::-1]), "dwtDct")
    return np.ascontiguousarray(bgr[:, :, ::-1])


def read(image: np.ndarray, num_bits: int) -> bytes:
    """Return `num_bits` bits read from the uint8 RGB image; without a watermark they are arbitrary."""
    decoder = _library().WatermarkDecoder("bytes", num_bits)
    return decoder.decode(np.ascontiguousarray(image[:, :, ::-1]), "dwtDct")


def recognise(image: np.ndarray) -> bytes | None:
    """Return the payload of the reference scripts that the image carries, or None."""
    return next((payload for payload in REFERENCE_PAYLOADS if carries(image, payload)), None)


def carries(image: np.ndarray, payload: bytes = PAYLOAD) -> bool:
    """Return whether `payload` can be read from the uint8 RGB image (h, w, 3)."""
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
    except Exception as error:  # not only ImportError: a broken OpenCV or NumPy raises others
        raise BackendUnavailable(
            f"the watermark library cannot be imported ({type(error).__name__}: {error}); "
            "pip install invisible-watermark, or use --watermark off"
        ) from error
    return imwatermark
