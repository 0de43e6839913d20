"""The folder of a run, and what is in it.

config.yaml         the resolved configuration, with every default
versions.json       of what computed it, one entry a start
durations.json      seconds that a step, saving, validation and export took, for the time limit
metrics.csv         means over `log_every` steps; loss.png draws it
images/NNNNNNNN.png sample grids by step
checkpoints/        states to resume from
model.safetensors, model.yaml    the result, as `ldm.load_model` takes it
"""

import csv
import json
import math
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.config import with_absolute_paths
from ldm.files.atomic import atomic_write
from ldm.training.state import has_state
from ldm.yaml_file import to_yaml

NO_CURVES = ("step", "seconds", "images_per_second")
SMALLEST_SHOWN, GAP, CAPTION_LINES = 128, 4, 3  # of a grid: pixels, pixels, lines of text


def choose_folder(wanted: Path, resume: str | None) -> tuple[Path, bool]:
    """Return the folder of this run and whether it is resumed from a checkpoint.

    Without `resume`, a folder that holds a run is left alone: the next free NAME-2, NAME-3, ... is taken.
    "auto" resumes the newest of them, or starts a new run. Any other text is the folder to resume, or a file
    in it.
    """
    if resume not in (None, "auto"):
        path = Path(resume)
        path = path.parent if path.suffix == ".ckpt" else path
        return (path.parent if path.name == "checkpoints" else path), True
    existing = [path for path in numbered(wanted) if has_state(path / "checkpoints")]
    if resume == "auto" and existing:
        return max(existing, key=lambda path: (path / "checkpoints" / "last.ckpt").stat().st_mtime), True
    number = 1
    while True:
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if not (folder / "config.yaml").exists():
            return folder, False
        number += 1


def numbered(wanted: Path) -> list[Path]:
    """Return NAME and all NAME-2, NAME-3, ... that exist."""
    others = [
        p for p in wanted.parent.glob(f"{wanted.name}-*") if p.name.removeprefix(f"{wanted.name}-").isdigit()
    ]
    return [path for path in [wanted, *others] if path.is_dir()]


def write_start(folder: Path, config: dict[str, Any], versions: dict[str, str]) -> None:
    """Write the configuration, with absolute paths, and add an entry to versions.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = to_yaml(with_absolute_paths(config))  # so that the run can be resumed from any folder
    atomic_write(folder / "config.yaml", lambda path: path.write_text(text))
    record = folder / "versions.json"
    starts = json.loads(record.read_text()) if record.exists() else []
    starts.append({"command": sys.argv, **versions})
    atomic_write(record, lambda path: path.write_text(json.dumps(starts, indent=2)))


def read_durations(folder: Path) -> dict[str, float]:
    """Return what `write_durations` wrote; nothing where there is none, or it was cut short."""
    try:
        found = json.loads((folder / "durations.json").read_text())
        return {str(part): float(seconds) for part, seconds in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def write_durations(folder: Path, took: dict[str, float]) -> None:
    """Write how many seconds the parts of training took."""
    text = json.dumps({part: round(seconds, 3) for part, seconds in took.items()}, indent=2)
    atomic_write(folder / "durations.json", lambda path: path.write_text(text))


class MetricsLog:
    """metrics.csv: a row every so many steps; a column may join; rows after a resumed step are dropped."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or [])
                # A row cut short by a kill has empty cells; so does a row written before a column joined.
                self.rows = [row for row in reader if row["step"] and int(row["step"]) <= resumed_step]
            self._write_all()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; a new column makes the file be written again."""
        row = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()}
        self.rows.append(row)
        new = [key for key in row if key not in self.columns]
        if new:
            self.columns += new
            self._write_all()
            return
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _write_all(self) -> None:
        def write(path: Path) -> None:
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(self.rows)

        if self.columns:
            atomic_write(self.path, write)

    def draw(self, path: Path) -> None:
        """Draw every loss and validation figure over the steps."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
        from matplotlib.ticker import MaxNLocator

        panels = self._panels()
        if not panels:
            return
        wide = min(3, len(panels))
        rows = math.ceil(len(panels) / wide)
        figure = pyplot.figure(figsize=(4.5 * wide, 3 * rows))
        last = max(int(row["step"]) for row in self.rows)
        grid = figure.add_gridspec(rows, 6)
        for place, (heading, curves) in enumerate(panels.items()):
            row, column = divmod(place, wide)
            width = 6 // min(wide, len(panels) - row * wide)  # the last row is as wide as the others
            axis = figure.add_subplot(grid[row, column * width : (column + 1) * width])
            for name, points in curves.items():
                marker = "." if len(points) < 20 else None
                axis.plot(*zip(*points, strict=True), linewidth=1, marker=marker, label=name)
            values = [value for points in curves.values() for _, value in points]
            if min(values) > 0 and max(values) > 10 * min(values) and "psnr" not in heading:
                axis.set_yscale("log")
            axis.set(title=heading, xlabel="step", xlim=(0, 1.03 * last + 0.1))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            if len(curves) > 1:
                axis.legend(fontsize="x-small")
        figure.tight_layout()
        atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=80))
        pyplot.close(figure)

    def _panels(self) -> dict[str, dict[str, list[tuple[int, float]]]]:
        """Return heading -> {column: (step, finite value)}; val_loss, val_loss_t100, ... share a panel."""
        panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
        for name in self.columns:
            if name in NO_CURVES or name.startswith(("lr_", "grad_norm_")):
                continue
            cells = [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name)]
            points = [(step, value) for step, value in cells if math.isfinite(value)]
            if points:
                panels.setdefault(re.sub(r"(_t|_at_)\d+$", "", name), {})[name] = points
        return panels


class Shown(NamedTuple):
    """Images for a grid.

    Args:
        images: (n, 3, h, w) in [-1, 1].
        captions: what is written under each.
        columns: images in a row; 0: as many as leave the fewest places empty.
    """

    images: Tensor
    captions: list[str]
    columns: int = 0


def save_grid(shown: Shown, path: Path) -> None:
    """Write images with their captions as one PNG; small images are enlarged."""
    enlarged = max(1, math.ceil(SMALLEST_SHOWN / shown.images.shape[-1]))
    pixels = ((shown.images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(enlarged, 2).repeat_interleave(enlarged, 3).permute(0, 2, 3, 1)
    count, height, width, _ = pixels.shape
    columns = shown.columns or full_columns(count)
    font = _font(max(10, width // 20))
    texts = [wrapped(caption, font, width - 2 * GAP) for caption in shown.captions]
    line = sum(font.getmetrics()) + 1
    below = line * max(len(text) for text in texts) + 2 * GAP
    size = (columns * (width + GAP) + GAP, math.ceil(count / columns) * (height + below) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, (image, text) in enumerate(zip(pixels, texts, strict=True)):
        left, top = GAP + place % columns * (width + GAP), GAP + place // columns * (height + below)
        sheet.paste(Image.fromarray(image.numpy()), (left, top))
        for number, words in enumerate(text):
            draw.text((left + GAP, top + height + GAP // 2 + number * line), words, "black", font)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda temporary: sheet.save(temporary, format="png"))


def _font(size: int) -> Any:
    """Return the font of matplotlib, which has the letters of most alphabets."""
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(file, size) if file.is_file() else ImageFont.load_default(size)


def full_columns(count: int) -> int:
    """Return the number of columns, up to 8, that leaves the fewest places of a sheet empty."""
    most = min(count, 8)
    return min(range(min(math.isqrt(count - 1) + 1, most), most + 1), key=lambda wide: (-count % wide, wide))


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """Return the lines of a text at this width in pixels, at most CAPTION_LINES."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    lines = lines[1:] if not lines[0] else lines
    kept = lines[:CAPTION_LINES]
    if len(lines) > CAPTION_LINES:
        kept[-1] += " ..."
    for number, line in enumerate(kept):
        while line and font.getlength(line) > width:
            line = line.removesuffix("...")[:-1].rstrip() + "..." if len(line) > 4 else ""
        kept[number] = line
    return kept
