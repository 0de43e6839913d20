"""Philox4x32-10, a counter-based random number generator, and two ways from its words to normal numbers.

One block of four 32-bit words is a function of a counter (4 words) and a key (2 words) and of nothing else:
ten rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3) of

    (c0, c1, c2, c3) -> (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0))

with the key raised by (W0, W1) after each. Two words a, b become two normal numbers (Box and Muller 1958):

    sqrt(-2 log u) (cos, sin)(2 pi v)      u = (a + 1/2) / 2^32      v = (b + 1/2) / 2^32
"""

import math

import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

LOG = [2 / (2 * n + 1) for n in range(12)]  # log((1 + s) / (1 - s)) = s times these in powers of s^2
SIN = [(-1) ** n / math.factorial(2 * n + 1) for n in range(12)]
COS = [(-1) ** n / math.factorial(2 * n) for n in range(12)]


def philox(counter: tuple[int | np.ndarray, ...], key: tuple[int, int]) -> np.ndarray:
    """Return the words (4, n) uint32 of n blocks: each of the four counter words is a number or (n,)."""
    c0, c1, c2, c3 = (c.astype(np.uint64) for c in np.broadcast_arrays(*np.atleast_1d(*counter)))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = M0 * c0, M1 * c2
        c0, c2 = (p1 >> HALF) ^ c1 ^ np.uint64(k0), (p0 >> HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & LOW, p0 & LOW
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def normal(words: np.ndarray) -> np.ndarray:
    """Return as many normal numbers as there are words (2k, n): (n * 2k,) float32, block after block.

    Made with additions, multiplications, divisions and square roots alone, which IEEE 754 defines to the last
    bit: a library's logarithm or sine may differ in it from one processor or version to the next.
    """
    radius = np.sqrt(-2 * _log((words[0::2] + 0.5) * 2.0**-32))
    cos, sin = _cos_sin(words[1::2])
    return np.stack([radius * cos, radius * sin], 1).reshape(len(words), -1).T.ravel().astype(np.float32)


def cuda_normal(seed: int, draw: int, size: int) -> np.ndarray:
    """Return what `torch.randn(size)` gives on a CUDA device, (size,) float32, to about 1e-6.

    Every element has its own thread, whose number is the upper half of the counter, and which keeps the first
    of four normal numbers (cuRAND's `curand_normal4`):

        sqrt(-2 log u) sin(v)      u = a / 2^32 + 1 / 2^33      v = 2 pi (b / 2^32 + 1 / 2^33)

    in single precision. So it is for tensors of no more elements than the device runs threads at a time.

    Args:
        seed: of the generator, up to 64 bits: the key.
        draw: how many tensors were drawn since it was seeded: the lower half of the counter.
    """
    key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    a, b = philox((draw, 0, np.arange(size), 0), key)[:2].astype(np.float32)
    unit = np.float32(2.0**-32)
    u = a * unit + unit / 2
    v = b * (unit * np.float32(2 * math.pi)) + unit * np.float32(math.pi)
    return np.sqrt(-2 * np.log(u)) * np.sin(v)


def _log(u: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(u)
    small = mantissa < math.sqrt(0.5)
    mantissa, exponent = np.where(small, 2 * mantissa, mantissa), exponent - small
    s = (mantissa - 1) / (mantissa + 1)
    return exponent * math.log(2) + s * _polynomial(LOG, s * s)


def _cos_sin(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin of 2 pi (words + 1/2) / 2^32: the upper two bits are the quadrant."""
    quadrant = words >> np.uint32(30)
    angle = ((words & np.uint32(0x3FFFFFFF)) + 0.5) * (math.pi / 2**31)
    square = angle * angle
    cos, sin = _polynomial(COS, square), angle * _polynomial(SIN, square)
    odd = quadrant % 2 == 1
    cos, sin = np.where(odd, -sin, cos), np.where(odd, cos, sin)
    sign = np.where(quadrant >= 2, -1.0, 1.0)
    return sign * cos, sign * sin


def _polynomial(coefficients: list[float], x: np.ndarray) -> np.ndarray:
    """Return c0 + c1 x + c2 x^2 + ... (Horner)."""
    total = np.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total
