"""The invisible watermark of the reference scripts: 32 bits `SDV2`, by invisible-watermark's "dwtDct" method.

    U  = chroma of the image (8-bit YUV), cropped to multiples of 4
    LL = the low band of U's one-level Haar transform, cut into 4 x 4 blocks; block n carries bit n mod length
    c  -> sign(c) * (floor(|c| / 36) + 1/4 + bit / 2) * 36,   c: the largest of a block except its first

The reader takes |c| mod 36 > 18 as 1, and the blocks of a bit vote. The result equals the library's bit by
bit: 8-bit fixed-point YUV, the same rounding of the transform, and the two mixed detail bands exchanged in
the inverse transform. A test compares the two; the library and OpenCV are not needed at run time.

As in the library, images under 256 x 256 = 65,536 pixels are not marked, and flat images lose bits. Both are
still saved, with a message, because a missing watermark is no reason to lose an image. A payload is
recognised with up to one bit in eight wrong: about one of 100,000 unmarked images would be taken for SDV2.
"""

import numpy as np

PAYLOAD = b"SDV2"
REFERENCE_PAYLOADS = (PAYLOAD, b"StableDiffusionV1", b"StableDiffusionV1-Inpainting")
MIN_PIXELS = 256 * 256
MAX_WRONG_BITS = 1 / 8
MIN_SIDE = 8  # gives one 4 x 4 block after one wavelet level
BLOCK = 4
STRENGTH = 36
HAAR = np.sqrt(0.5)

# YUV in fixed point with 14 fractional bits; U and V are centred at 128.
SHIFT = 14
OF_Y = (4899, 9617, 1868)  # factors of red, green, blue
TO_U, TO_V = 8061, 14369  # factors of blue - Y and of red - Y
U_TO_BLUE, U_TO_GREEN, V_TO_GREEN, V_TO_RED = 33292, -6472, -9519, 18678


def fits(image: np.ndarray) -> bool:
    """Return whether the image (h, w, 3) is large enough for a watermark."""
    height, width = image.shape[:2]
    return height * width >= MIN_PIXELS and min(height, width) >= MIN_SIDE


def mark(image: np.ndarray, payload: bytes = PAYLOAD) -> np.ndarray:
    """Return a copy of the uint8 RGB image (h, w, 3) that carries `payload`; it must be large enough."""
    y, u, v = _to_yuv(image)
    cropped = _cropped(u)
    low, (horizontal, vertical, diagonal) = _haar(cropped.astype(np.float64))
    blocks, places = _blocks(low)
    bits = np.resize(np.unpackbits(np.frombuffer(payload, np.uint8)), len(blocks))
    values = np.take_along_axis(blocks, places, axis=1)[:, 0]
    size = (np.abs(values) // STRENGTH + 0.25 + 0.5 * bits) * STRENGTH
    np.put_along_axis(blocks, places, np.where(values >= 0, size, -size)[:, None], axis=1)
    cropped[...] = _inverse_haar(_joined(blocks, low), (vertical, horizontal, diagonal)).astype(np.uint8)
    return _to_rgb(y, u, v)


def read(image: np.ndarray, num_bits: int) -> bytes:
    """Return `num_bits` bits read from the uint8 RGB image; without a watermark they are arbitrary."""
    _, u, _ = _to_yuv(image)
    blocks, places = _blocks(_haar(_cropped(u).astype(np.float64))[0])
    values = np.abs(np.take_along_axis(blocks, places, axis=1)[:, 0])
    ones = values % STRENGTH > STRENGTH / 2
    position = np.arange(len(ones)) % num_bits
    votes = np.bincount(position, ones, num_bits) / np.bincount(position, minlength=num_bits)
    return np.packbits(votes * 255 > 127).tobytes()


def recognise(image: np.ndarray) -> bytes | None:
    """Return the payload of the reference scripts that the image carries, or None."""
    return next((payload for payload in REFERENCE_PAYLOADS if carries(image, payload)), None)


def carries(image: np.ndarray, payload: bytes = PAYLOAD) -> bool:
    """Return whether `payload` can be read from the uint8 RGB image (h, w, 3)."""
    if not fits(image):
        return False
    wrong = np.frombuffer(read(image, 8 * len(payload)), np.uint8) ^ np.frombuffer(payload, np.uint8)
    return bool(np.unpackbits(wrong).mean() <= MAX_WRONG_BITS)


def _to_yuv(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split a uint8 RGB image (h, w, 3) into uint8 Y, U, V (h, w)."""
    red, green, blue = (image[..., channel].astype(np.int32) for channel in range(3))
    y = _rounded(OF_Y[0] * red + OF_Y[1] * green + OF_Y[2] * blue)
    u, v = _rounded(TO_U * (blue - y)) + 128, _rounded(TO_V * (red - y)) + 128
    return tuple(plane.clip(0, 255).astype(np.uint8) for plane in (y, u, v))


def _to_rgb(*planes: np.ndarray) -> np.ndarray:
    """Join uint8 Y, U, V (h, w) to a uint8 RGB image (h, w, 3)."""
    y, u, v = (plane.astype(np.int32) for plane in planes)
    u, v = u - 128, v - 128
    red, blue = y + _rounded(V_TO_RED * v), y + _rounded(U_TO_BLUE * u)
    green = y + _rounded(U_TO_GREEN * u + V_TO_GREEN * v)
    return np.stack([red, green, blue], axis=-1).clip(0, 255).astype(np.uint8)


def _rounded(fixed: np.ndarray) -> np.ndarray:
    return (fixed + (1 << SHIFT - 1)) >> SHIFT


def _cropped(plane: np.ndarray) -> np.ndarray:
    height, width = plane.shape
    return plane[: height // BLOCK * BLOCK, : width // BLOCK * BLOCK]


def _haar(plane: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the low band (h / 2, w / 2), and the vertical, horizontal and diagonal detail bands."""
    even, odd = HAAR * plane[0::2], HAAR * plane[1::2]
    (low, across), (down, both) = (
        (HAAR * rows[:, 0::2] + HAAR * rows[:, 1::2], HAAR * rows[:, 0::2] - HAAR * rows[:, 1::2])
        for rows in (even + odd, even - odd)
    )
    return low, (down, across, both)


def _inverse_haar(low: np.ndarray, details: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Undo `_haar`."""
    down, across, both = details
    plane = np.empty((2 * low.shape[0], 2 * low.shape[1]))
    sums, differences = np.empty((2, low.shape[0], 2 * low.shape[1]))
    for rows, a, b in ((sums, low, across), (differences, down, both)):
        rows[:, 0::2], rows[:, 1::2] = HAAR * a + HAAR * b, HAAR * a - HAAR * b
    plane[0::2], plane[1::2] = HAAR * sums + HAAR * differences, HAAR * sums - HAAR * differences
    return plane


def _blocks(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the complete blocks of a band as rows (n, 16), and the index of each marked value (n, 1)."""
    down, across = (side // BLOCK for side in band.shape)
    whole = band[: down * BLOCK, : across * BLOCK].reshape(down, BLOCK, across, BLOCK)
    blocks = whole.swapaxes(1, 2).reshape(-1, BLOCK * BLOCK)
    return blocks, np.abs(blocks[:, 1:]).argmax(axis=1, keepdims=True) + 1


def _joined(blocks: np.ndarray, band: np.ndarray) -> np.ndarray:
    """Return the band (h, w) with its complete blocks replaced."""
    down, across = (side // BLOCK for side in band.shape)
    whole = blocks.reshape(down, across, BLOCK, BLOCK).swapaxes(1, 2)
    joined = band.copy()
    joined[: down * BLOCK, : across * BLOCK] = whole.reshape(down * BLOCK, across * BLOCK)
    return joined
