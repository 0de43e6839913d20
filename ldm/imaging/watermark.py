"""The invisible watermark of the reference scripts: 32 bits `SDV2`, read by invisible-watermark's "dwtDct".

    U  = chroma of the image (8-bit YUV), cropped to multiples of 4
    LL = the low band of U's one-level Haar transform, cut into 4 x 4 blocks; block n carries bit n mod length
    c  = the largest |value| of a block except its first; it carries 1 if c mod 36 > 18

The blocks of a bit vote. A value of LL is half the sum of U over 2 x 2 pixels, so a block is 8 x 8 pixels and
can be written in the pixels themselves, in 8 bits and without clipping: `mark` either raises the largest
value or lowers all values above a target, whichever changes fewer colours, along the gradient of U in RGB
within 0..255. It aims at the middle of the interval of a bit, and nearer to its end where the image would
otherwise change by more than BUDGET; in flat images of extreme colours it then writes no more blocks than the
votes need. `benchmarks/watermark.py` measures this.

`mark_as_reference` has the bytes of the library: it sets c to sign(c) * (floor(c / 36) + 1/4 + bit / 2) * 36
with the same 8-bit fixed-point YUV and rounding, exchanges the two mixed detail bands in the inverse
transform, and wraps around at 0 and 255, which damages edges in colour. A test compares the two; the library
and OpenCV are not needed at run time.

As in the library, images under 256 x 256 = 65,536 pixels are not marked. They are saved with a message,
because a missing watermark is no reason to lose an image. A payload is recognised with up to one bit in eight
wrong: about one of 100,000 unmarked images would be taken for SDV2.
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
MARGINS = (8.0, 4.0, 0.5)  # distance to the end of the interval of a bit, at most STRENGTH / 4 = 9
BUDGET = 255**2 / 10**4.6  # mean squared change: 46 dB
MOST = 30  # levels of 255 by which any value may change
ROUNDS = 40

# YUV in fixed point with 14 fractional bits; U and V are centred at 128.
SHIFT = 14
OF_Y = (4899, 9617, 1868)  # factors of red, green, blue
TO_U, TO_V = 8061, 14369  # factors of blue - Y and of red - Y
U_TO_BLUE, U_TO_GREEN, V_TO_GREEN, V_TO_RED = 33292, -6472, -9519, 18678
U_OF_RGB = TO_U / 2**SHIFT * (np.array([0, 0, 1]) - np.array(OF_Y) / 2**SHIFT)  # gradient of U


def fits(image: np.ndarray) -> bool:
    """Return whether the image (h, w, 3) is large enough for a watermark."""
    height, width = image.shape[:2]
    return height * width >= MIN_PIXELS and min(height, width) >= MIN_SIDE


def mark(image: np.ndarray, payload: bytes = PAYLOAD) -> np.ndarray:
    """Return a copy of the uint8 RGB image (h, w, 3) that carries `payload`; it must be large enough."""
    tiles = _tiles(image)
    bits = _bits(payload, len(tiles))
    for margin in MARGINS:
        changes, costs = _changes(tiles, bits, margin)
        chosen, suffice = _chosen(costs, bits, 8 * len(payload), BUDGET * image.size)
        if suffice:
            break
    result = image.copy()
    whole = result[: image.shape[0] // 8 * 8, : image.shape[1] // 8 * 8]
    whole[...] = _joined_tiles(tiles + changes * chosen[:, None, None, None], whole.shape)
    return result


def mark_as_reference(image: np.ndarray, payload: bytes = PAYLOAD) -> np.ndarray:
    """Return a copy of the uint8 RGB image (h, w, 3) that carries `payload`, as the library marks it."""
    y, u, v = _to_yuv(image)
    cropped = _cropped(u)
    low, (horizontal, vertical, diagonal) = _haar(cropped.astype(np.float64))
    blocks, places = _blocks(low)
    bits = _bits(payload, len(blocks))
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


def _bits(payload: bytes, count: int) -> np.ndarray:
    """Return the bit of each of `count` blocks."""
    return np.resize(np.unpackbits(np.frombuffer(payload, np.uint8)), count)


def _tiles(image: np.ndarray) -> np.ndarray:
    """Return the complete blocks of an image as int16 (n, 16 values of LL, 4 pixels, RGB)."""
    down, across = (side // 8 for side in image.shape[:2])
    whole = image[: 8 * down, : 8 * across].reshape(down, BLOCK, 2, across, BLOCK, 2, 3)
    return whole.transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, BLOCK * BLOCK, 4, 3).astype(np.int16)


def _joined_tiles(tiles: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `_tiles` for an image whose sides are multiples of 8."""
    whole = tiles.reshape(shape[0] // 8, shape[1] // 8, BLOCK, BLOCK, 2, 2, 3)
    return whole.transpose(0, 2, 4, 1, 3, 5, 6).reshape(shape)


def _low(pixels: np.ndarray) -> np.ndarray:
    """Return the values of LL (...) of integer pixels (..., 4, 3)."""
    return _to_yuv(pixels)[1].sum(-1, dtype=np.int32) / 2


def _changes(tiles: np.ndarray, bits: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the changes int16 (n, 16, 4, 3) that write the bits (n), and their squared sizes (n).

    The size is infinite where a bit cannot be written.
    """
    low = _low(tiles)
    low[:, 0] = 0  # not read
    top = low.max(axis=1)
    first = top // STRENGTH * STRENGTH + STRENGTH / 2 * bits + margin  # of the interval of the bit
    last = first + STRENGTH / 2 - 2 * margin
    above, below = np.where(top > last, first + STRENGTH, first), np.where(top < first, last - STRENGTH, last)
    wrong = ((top < first) | (top > last))[:, None]
    largest = np.arange(low.shape[1]) == low.argmax(axis=1, keepdims=True)
    raised, cost = _change(tiles, bits, wrong & largest, above, 1)
    excess = np.maximum(low - below[:, None], 0) * wrong
    dear = cost > np.square(excess).sum(axis=1) / np.square(U_OF_RGB).sum()  # the least that lowering costs
    lowered, other = _change(tiles, bits, (excess > 0) & dear[:, None], below, -1)
    return np.where((cost <= other)[:, None, None, None], raised, lowered), np.minimum(cost, other)


def _change(
    tiles: np.ndarray, bits: np.ndarray, which: np.ndarray, target: np.ndarray, sign: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the changes and their sizes as `_changes` does, of moving some values of LL (n, 16) one way."""
    change = np.zeros_like(tiles)
    block, value = np.nonzero(which)
    change[block, value] = _moved(tiles[block, value], target[block], sign)
    place = (_low(tiles + change)[:, 1:].max(axis=1) - STRENGTH / 2 * bits) % STRENGTH
    is_read = abs(place - STRENGTH / 4) <= STRENGTH / 4 - MARGINS[-1]
    return change, np.where(is_read, np.square(change, dtype=np.int32).sum((1, 2, 3)), np.inf)


def _moved(pixels: np.ndarray, target: np.ndarray, sign: int) -> np.ndarray:
    """Return the change int16 of pixels (m, 4, 3) whose values of LL go up or down to their targets (m)."""
    least, most = np.maximum(pixels - MOST, 0), np.minimum(pixels + MOST, 255)
    slope = sign * U_OF_RGB
    moved, todo = pixels.astype(np.float64), np.arange(len(pixels))
    power = np.square(np.where(slope > 0, pixels < most, pixels > least) * slope).sum(axis=2)
    share = power / np.maximum(power[:, ::-1].cumsum(axis=1)[:, ::-1], 1e-9)  # of the rest
    for turn in range(ROUNDS):  # one pixel at a time, so that each makes use of how the others were rounded
        left = 2 * sign * (target[todo] - _low(np.rint(moved[todo]).astype(np.int16)))
        todo, left = todo[left > 0], left[left > 0]
        if not len(todo):
            break
        at = todo, turn % 4
        free = np.where(slope > 0, moved[at] < most[at], moved[at] > least[at]) * slope
        size = np.ceil(left * share[at]) / np.maximum(np.square(free).sum(axis=1), 1e-3)
        moved[at] = np.clip(moved[at] + size[:, None] * free, least[at], most[at])
    return np.rint(moved).astype(np.int16) - pixels


def _chosen(costs: np.ndarray, bits: np.ndarray, length: int, budget: float) -> tuple[np.ndarray, bool]:
    """Return which blocks (n) to write, and whether they are all that can be and every vote is won."""
    position = np.arange(len(costs)) % length
    order = np.lexsort((costs, position))
    rank = np.empty(len(costs), np.int64)
    rank[order] = np.arange(len(costs)) - np.searchsorted(position[order], position[order])
    can, votes = np.isfinite(costs), np.bincount(position, minlength=length)
    ones = votes * 127 // 255  # the most that are read as 0
    needed = np.where(bits[:length], ones + 1, votes - ones)
    necessary = can & (rank < needed[position])
    order = np.lexsort((costs, ~necessary))
    chosen = np.empty(len(costs), bool)
    chosen[order] = np.cumsum(costs[order]) <= budget
    won = (np.bincount(position, can, length) >= needed).all()
    return can & (chosen | necessary), bool(won and (chosen >= can).all())


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
