"""Measure the invisible watermark: how much it changes an image, and whether it is read.

    python benchmarks/watermark.py [FOLDER ...]         also the PNG and JPEG files of folders

Prints two lines for each group of images, with our own marks and with those of the library: the lowest PSNR,
the largest change of a value, the share that invisible-watermark's decoder reads without a wrong bit, and the
time for a megapixel. Needs invisible-watermark.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ldm.imaging import watermark
from ldm.imaging.files import open_image

SIDE = 256
COLOURS = {
    "black": (0, 0, 0), "white": (255, 255, 255), "grey": (128, 128, 128), "red": (255, 0, 0),
    "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
}  # fmt: skip


def groups(folders: list[str]) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield the name and the images (h, w, 3) uint8 of each group."""
    for folder in folders:
        files = sorted(f for f in Path(folder).rglob("*") if f.suffix in (".png", ".jpg"))
        images = [open_image(file) for file in files]
        large = [image if min(image.size) >= SIDE else image.resize((512, 512)) for image in images]
        yield folder, [np.asarray(image) for image in large]
    for name, colour in COLOURS.items():
        yield f"flat {name}", [flat(colour)]
    for width in (1, 2, 3, 8):
        lines = [stripes(a, b, width) for a, b in (("yellow", "blue"), ("red", "cyan"), ("green", "magenta"))]
        both = lines + [image.swapaxes(0, 1) for image in lines]
        yield f"stripes of {width}", [np.ascontiguousarray(image) for image in both]
    rng = np.random.default_rng(0)
    yield "noise", [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(4)]
    yield "photographs, synthetic", [photograph(seed) for seed in range(8)]


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def stripes(first: str, second: str, width: int) -> np.ndarray:
    """Return columns of two colours in turn."""
    odd = (np.arange(SIDE) // width % 2)[None, :, None] == 1
    return np.where(odd, flat(COLOURS[second]), flat(COLOURS[first]))


def photograph(seed: int, side: int = 512) -> np.ndarray:
    """Return noise with the spectrum of photographs, 1 / frequency, in colours that mostly vary together."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    spectrum = np.fft.fft2(rng.normal(size=(3, side, side))) / np.maximum(frequency, 1 / side)
    planes = np.fft.ifft2(spectrum).real
    grey, *others = planes / planes.std((1, 2), keepdims=True)
    rgb = np.stack([grey + 0.3 * others[0], grey, grey + 0.3 * others[1]], -1)
    return np.rint(128 + 60 * rgb + rng.normal(0, 2, rgb.shape)).clip(0, 255).astype(np.uint8)


def measure(images: list[np.ndarray], mark=watermark.mark) -> dict[str, float]:
    """Return the numbers of a group."""
    from imwatermark import WatermarkDecoder

    decoder = WatermarkDecoder("bytes", 8 * len(watermark.PAYLOAD))
    psnr, largest, read, seconds = [], 0, 0, 0.0
    for image in images:
        start = time.perf_counter()
        marked = mark(image)
        seconds += time.perf_counter() - start
        change = marked.astype(np.float64) - image
        psnr.append(10 * np.log10(255**2 / max(np.square(change).mean(), 1e-9)))
        largest = max(largest, int(abs(change).max()))
        read += decoder.decode(np.ascontiguousarray(marked[:, :, ::-1]), "dwtDct") == watermark.PAYLOAD
    count = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    return {
        "images": len(images), "PSNR": min(psnr), "largest": largest, "read": read / len(images),
        "s/MP": seconds / count,
    }  # fmt: skip


def main() -> None:
    for name, images in groups(sys.argv[1:]):
        for which in (watermark.mark, watermark.mark_as_reference):
            found = measure(images, which)
            label = f"{name} ({'reference' if which is watermark.mark_as_reference else 'own'})"
            print(f"{label:44}", *(f"{key} {value:<7.4g}" for key, value in found.items()))


if __name__ == "__main__":
    main()
