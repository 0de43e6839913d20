"""The folder of a run, and what is in it.

config.yaml         the resolved configuration, with every default
versions.json       of what computed it, one entry a start
metrics.csv         means over `log_every` steps; loss.png draws it
images/NNNNNNNN.png sample grids by step
checkpoints/        states to resume from
model.safetensors, model.yaml    the result, as `ldm.load_model` takes it
"""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.files.atomic import atomic_write
from ldm.training.state import has_state
from ldm.yaml_file import to_yaml


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
    """Write the configuration, and add an entry to versions.json."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "config.yaml", lambda path: path.write_text(to_yaml(config)))
    record = folder / "versions.json"
    starts = json.loads(record.read_text()) if record.exists() else []
    starts.append({"command": sys.argv, **versions})
    atomic_write(record, lambda path: path.write_text(json.dumps(starts, indent=2)))


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

        names = [
            name
            for name in self.columns
            if name not in ("step", "seconds", "images_per_second")
            and not name.startswith(("lr_", "grad_norm_"))
        ]
        if not names or not self.rows:
            return
        wide = min(3, len(names))
        figure, axes = pyplot.subplots(
            math.ceil(len(names) / wide),
            wide,
            figsize=(4.5 * wide, 3 * math.ceil(len(names) / wide)),
            squeeze=False,
        )
        for axis, name in zip(axes.flat, names, strict=False):
            points = [
                (int(row["step"]), float(row[name])) for row in self.rows if row.get(name) not in (None, "")
            ]
            axis.plot(*zip(*points, strict=True), linewidth=1)
            if all(value > 0 for _, value in points) and not name.startswith("val_psnr"):
                axis.set_yscale("log")
            axis.set_title(name)
        figure.tight_layout()
        atomic_write(path, lambda temporary: figure.savefig(temporary, format="png", dpi=80))
        pyplot.close(figure)


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write images (n, 3, h, w) in [-1, 1] as one PNG with `columns` in a row."""
    images = images.detach().float().cpu().clamp(-1, 1)
    rows = math.ceil(len(images) / columns)
    blank = torch.ones(rows * columns - len(images), *images.shape[1:])
    grid = torch.cat([images, blank]).unflatten(0, (rows, columns))  # (r, c, 3, h, w)
    grid = grid.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (r*h, c*w, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(((grid + 1) * 127.5).round().to(torch.uint8).numpy())
    atomic_write(path, lambda temporary: image.save(temporary, format="png"))
