"""Measure the step at the border of an outpainted image, for images with a rim, a vignette, or JPEG borders.

    python benchmarks/outpaint_rim.py [--steps 12] [--out SHEET.png]

The demo model extends docs/images/gallery/half.png, changed in several ways, to the right. The step is the
mean difference, of 255, of the first two new columns and the columns 4 to 7 inside of the border, which no
rim reaches. The sheet shows every result.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.jobs.execute import generate
from ldm.jobs.opening import Models
from ldm.requests import Outpaint

HALF = Path(__file__).resolve().parents[1] / "docs/images/gallery/half.png"
SIDE = 128


def inputs(image: np.ndarray) -> dict[str, np.ndarray]:
    """Return changed images (h, w, 3) uint8 by name."""
    height, width = image.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    found = {"as it is": image, "vignette": _levels(image * (1 - 0.35 * (x**2 + y**2))[..., None])}
    rims = ("dark column", 1, 0.7), ("2 dark columns", 2, 0.75), ("bright column", 1, 1.4)
    for name, depth, factor in rims:
        found[name] = image.copy()
        found[name][:, -depth:] = _levels(image[:, -depth:] * factor)
    buffer = io.BytesIO()
    Image.fromarray(image[:, :-3]).save(buffer, "JPEG", quality=30)  # its last block is cut
    return found | {"JPEG, quality 30": np.asarray(Image.open(buffer))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the step at the border of outpainted images.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, model = [], Models().open(Outpaint()).model
    for name, image in inputs(np.asarray(Image.open(HALF).convert("RGB"))).items():
        width = image.shape[1]
        request = Outpaint(
            prompt="3d emoji of a hamburger", init_img=image, right=SIDE - width, steps=args.steps,
            n_samples=2,
        )  # fmt: skip
        results = np.concatenate([batch.to_uint8() for batch in generate(model, request)])
        new, known = results[:, :, width : width + 2].mean(2), image[None, :, -7:-3].mean(2)
        print(f"{name:20} step {np.abs(new - known).mean():5.1f}", flush=True)
        rows.append(np.concatenate(list(results), axis=1))
    if args.out:
        Image.fromarray(np.concatenate(rows)).save(args.out)


def _levels(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
