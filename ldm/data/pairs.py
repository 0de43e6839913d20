"""Pairs of a map and an image, for ControlNets: `prompt.json`, as the data set fill50k has it.

    {"source": "source/0.png", "target": "target/0.png", "prompt": "pale golden rod circle with ..."}

One object a line; the paths are relative to the folder of the file.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.data.captions import rows_of
from ldm.data.images import CaptionedImages, read_image
from ldm.errors import InputError

TABLE = "prompt.json"


class PromptJson(CaptionedImages):
    """The pairs of a folder with a prompt.json: targets with their prompts, and sources as hints.

    Both images are cropped and flipped alike. Items are dicts of jpg, txt and hint, as the reference's.

    Args:
        path: the folder.
        size: side of the crops, in pixels.
        others: as of CaptionedImages; `captions` names another file than prompt.json.
    """

    def __init__(self, path: str = "training/fill50k", size: int = 512, **others: Any) -> None:
        super().__init__(path, size, **others)

    def found(self, folder: Path, captions: str | None, say: bool) -> list[tuple[tuple[Path, ...], str]]:
        table = folder / (captions or TABLE)
        if not table.is_file():
            raise InputError(
                f"{table}: no such file; expected one object a line, with source, target and prompt"
            )
        rows = rows_of(table, "source, target and prompt")
        return [_files(folder, f"{table}, line {number}", row) for number, row in rows]

    def read(self, files: tuple[Path, ...]) -> Tensor:
        """Return the target and its source, uint8 (6, h, w)."""
        target = read_image(files[0], self.size, self.background)
        source = read_image(files[1], self.size, 0)
        if target.shape != source.shape:
            sizes = (f"{x.shape[2]}x{x.shape[1]}" for x in (source, target))
            raise InputError(
                f"{files[1]} and {files[0]} have other proportions: at a shorter side of {self.size}, "
                f"{' and '.join(sizes)}; expected a source of its target's proportions"
            )
        return torch.cat([target, source])

    def batch(
        self, generator: torch.Generator, batch_size: int
    ) -> tuple[Tensor, list[str], dict[str, Tensor]]:
        """Return images (b, 3, size, size) in [-1, 1], prompts, and hints of that shape in [0, 1]."""
        both, prompts = super().batch(generator, batch_size)
        return both[:, :3], prompts, {"hint": (both[:, 3:] + 1) / 2}

    def __getitem__(self, row: int) -> dict[str, Any]:
        """Return jpg (h, w, 3) in [-1, 1], hint (h, w, 3) in [0, 1] and txt of a pair."""
        both = self._image(row).permute(1, 2, 0).numpy().astype(np.float32)
        return {"jpg": both[..., :3] / 127.5 - 1, "txt": self.captions[row], "hint": both[..., 3:] / 255}


def _files(folder: Path, where: str, row: dict[str, Any]) -> tuple[tuple[Path, ...], str]:
    names = [row.get(key) for key in ("target", "source", "prompt")]
    if not all(isinstance(name, str) for name in names) or not (names[0] and names[1]):
        raise InputError(f"{where}: expected source, target and prompt, with texts")
    files = tuple(folder / name for name in names[:2])
    for file in files:
        if not file.is_file():
            raise InputError(f"{where}: {file} does not exist")
    return files, names[2]
