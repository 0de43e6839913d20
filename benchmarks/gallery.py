"""Draw the gallery of README.md: run its commands with the demo models and put inputs next to outputs.

    python benchmarks/gallery.py                  all rows, into docs/images/gallery/
    python benchmarks/gallery.py img2img unclip   some of them
    python benchmarks/gallery.py --inputs         make the input images again, before the rows

A row shows the images that its command reads, and its maps, on the left, and the images on the right. Smaller
images are enlarged to the height of the row, pixel by pixel.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FOLDER = ROOT / "docs" / "images" / "gallery"
ROW = re.compile(r"<!-- gallery: (\w+) -->\n```bash\n(.*?)```", re.DOTALL)
INPUT_FLAGS = ("--init-img", "--mask")
GAP, ARROW = 4, 28  # pixels between images, and between inputs and outputs
# name of an input image -> the prompt and the seed that it is made with
INPUTS = {
    "ghost": ("flat emoji of a ghost, blue background", 42),
    "hamburger": ("3d emoji of a hamburger", 42),
    "star": ("3d emoji of a star", 2),
}
SMALL = 64  # side of the image to enlarge


def rows() -> dict[str, list[str]]:
    """Return the command of each row of README.md, by task."""
    text = (ROOT / "README.md").read_text()
    return {task: shlex.split(code.replace("\\\n", " ")) for task, code in ROW.findall(text)}


def inputs_of(command: Sequence[str]) -> list[Path]:
    """Return the images that a command reads, that of --control KIND:FILE included."""
    pairs = list(zip(command, command[1:], strict=False))
    found = [after for flag, after in pairs if flag in INPUT_FLAGS]
    found += [after.partition(":")[2] for flag, after in pairs if flag == "--control"]
    return [ROOT / path for path in found]


def run(command: Sequence[str]) -> tuple[list[Image.Image], list[Image.Image]]:
    """Run a command in a folder that looks like a clone; return the maps and the images that it saves."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("configs", "docs"):
            (Path(folder) / name).symlink_to(ROOT / name)
        _, script, *options = command
        subprocess.run([sys.executable, str(ROOT / script), *options], cwd=folder, check=True)
        maps, images = (
            [Image.open(path).copy() for path in sorted(Path(folder).glob(f"outputs/*/{kind}/*.png"))]
            for kind in ("controls", "samples")
        )
        return maps, images


def strip(inputs: Sequence[Image.Image], outputs: Sequence[Image.Image]) -> Image.Image:
    """Return inputs, an arrow and outputs side by side, on a transparent ground."""
    height = max(image.height for image in (*inputs, *outputs))
    left, right = ([_tile(image, height) for image in images] for images in (inputs, outputs))
    arrow = ARROW if left else 0
    width = sum(tile.width for tile in (*left, *right)) + GAP * max(len(left) - 1, 0)
    sheet = Image.new("RGBA", (width + arrow + GAP * (len(right) - 1), height))
    x = _paste(sheet, left, 0)
    if left:
        top, middle = height // 2 - 8, x - GAP + ARROW // 2
        ImageDraw.Draw(sheet).polygon(
            [(middle - 6, top), (middle - 6, top + 16), (middle + 8, top + 8)], "gray"
        )
        x += ARROW - GAP
    _paste(sheet, right, x)
    return sheet


def _paste(sheet: Image.Image, tiles: Sequence[Image.Image], x: int) -> int:
    for tile in tiles:
        sheet.paste(tile, (x, 0))
        x += tile.width + GAP
    return x


def _tile(image: Image.Image, height: int) -> Image.Image:
    """Return an image in RGB, of a height, its transparent part as a checkerboard."""
    image = image.convert("RGBA")
    columns, lines = np.meshgrid(np.arange(image.width) // 8, np.arange(image.height) // 8)
    squares = np.where((columns + lines) % 2, 255, 216).astype(np.uint8)
    board = Image.fromarray(squares).convert("RGBA")
    size = (round(image.width * height / image.height), height)
    return Image.alpha_composite(board, image).convert("RGB").resize(size, Image.Resampling.NEAREST)


def make_inputs() -> None:
    """Write the images that the commands read: those of the demo model, and what is made of them."""
    made = {name: _generated(prompt, seed) for name, (prompt, seed) in INPUTS.items()}
    hamburger = made["hamburger"]
    made["small"] = hamburger.resize((SMALL, SMALL), Image.Resampling.LANCZOS)
    made["half"] = hamburger.crop((0, 0, 80, hamburger.height))
    made["pair"] = Image.fromarray(np.hstack([made["star"], hamburger]))
    made["mask"] = Image.new("L", made["pair"].size)  # of the hamburger
    ImageDraw.Draw(made["mask"]).rounded_rectangle((132, 6, 251, 121), 16, "white")
    made["star"] = _cut_out(made["star"])
    for name, image in made.items():
        image.save(FOLDER / f"{name}.png", optimize=True)


def _cut_out(image: Image.Image) -> Image.Image:
    """Make the white ground of an image transparent."""
    whiteness = np.asarray(image.convert("RGB")).min(axis=2).astype(int)  # of the weakest channel
    opacity = np.clip((208 - whiteness) * 8, 0, 255).astype(np.uint8)
    found = image.convert("RGBA")
    found.putalpha(Image.fromarray(opacity))
    return found


def _generated(prompt: str, seed: int) -> Image.Image:
    import ldm
    from ldm.jobs.opening import Models
    from ldm.requests import Txt2Img

    request = Txt2Img(prompts=[prompt], seed=seed, n_iter=1, sampler="dpm", steps=20)
    batch = next(ldm.generate(Models().open(request).model, request))
    return Image.fromarray(batch.to_uint8()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="rows to draw (default: all)")
    parser.add_argument("--inputs", action="store_true", help="make the input images first")
    args = parser.parse_args()
    found = rows()
    if unknown := set(args.tasks) - set(found):
        parser.error(f"README.md has no rows {', '.join(sorted(unknown))}; it has {', '.join(found)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.inputs:
        make_inputs()
    for task in args.tasks or found:
        inputs = [Image.open(path) for path in inputs_of(found[task])]
        maps, outputs = run(found[task])
        strip([*inputs, *maps], outputs).save(FOLDER / f"{task}.png", optimize=True)


if __name__ == "__main__":
    main()
