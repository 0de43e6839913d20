"""A folder of images with captions.

Captions are looked for in this order:

    metadata.jsonl   one object a line: {"file_name": "a.png", "text": "..."}
    captions.csv     columns file_name, text (or any other .csv given by name)
    NAME.txt         next to NAME.png

An image without a caption has the empty one. Images are opened when they are drawn, and small sets are
kept in memory as uint8. Every random choice comes from the generator that the caller passes.
"""

import csv
import json
import logging
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging.files import to_rgb

log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEXT_KEYS = ("text", "caption", "txt", "prompt")


class CaptionedImages:
    """Random square crops of the images of a folder.

    Args:
        path: the folder; sub-folders count.
        size: side of the crops, in pixels; the shorter side is resized to it first.
        split: "train", "held_out" (every `held_out_every`-th image by name) or "all".
        mirror: flip half of the images.
        random_crop: crop anywhere instead of in the centre.
        memory_mb: keep decoded images up to this much.
        background: grey level, 0 to 255, put behind transparent images.
    """

    def __init__(
        self,
        path: str,
        size: int = 256,
        split: str = "all",
        held_out_every: int = 20,
        mirror: bool = False,
        random_crop: bool = False,
        captions: str | None = None,
        memory_mb: int = 2048,
        background: int = 255,
    ) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise InputError(f"{path}: is no folder; expected one with images and captions")
        if split not in ("train", "held_out", "all"):
            raise InputError(f"split {split!r}: expected train, held_out or all")
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        if split != "all":
            files = [f for i, f in enumerate(files) if (i % held_out_every == 0) == (split == "held_out")]
        if not files:
            raise InputError(f"{path}: holds no images ({', '.join(SUFFIXES)}) for split {split}")
        texts = read_captions(folder, captions)
        self.files = files
        self.captions = [caption_of(file, folder, texts) for file in files]
        self.size = size
        self.mirror = mirror
        self.random_crop = random_crop
        self.background = background
        self.room = memory_mb * 2**20
        self.kept: dict[int, Tensor] = {}
        without = self.captions.count("")
        if without:
            log.warning("%s: %d of %d images have no caption", path, without, len(files))

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, generator: torch.Generator, batch_size: int) -> tuple[Tensor, list[str]]:
        """Return images (b, 3, size, size) in [-1, 1] and captions of images drawn with replacement."""
        rows = torch.randint(len(self), (batch_size,), generator=generator).tolist()
        draws = torch.rand(batch_size, 3, generator=generator).tolist()
        images = torch.stack([self._crop(row, draw) for row, draw in zip(rows, draws, strict=True)])
        return images.float() / 127.5 - 1.0, [self.captions[row] for row in rows]

    def _crop(self, row: int, draw: list[float]) -> Tensor:
        """Return a uint8 (3, size, size) crop; `draw` are three numbers in [0, 1)."""
        image = self._image(row)
        height, width = image.shape[1:]
        across, down, flip = draw if self.random_crop else (0.5, 0.5, draw[2])
        top, left = int(down * (height - self.size + 1)), int(across * (width - self.size + 1))
        crop = image[:, top : top + self.size, left : left + self.size]
        return crop.flip(2) if self.mirror and flip < 0.5 else crop

    def _image(self, row: int) -> Tensor:
        """Return the image with its shorter side at `size`, uint8 (3, h, w)."""
        if row in self.kept:
            return self.kept[row]
        image = read_image(self.files[row], self.size, self.background)
        self.room -= image.numel()
        if self.room > 0:
            self.kept[row] = image
        return image


def read_image(file: Path, size: int, background: int) -> Tensor:
    """Open an image upright as RGB with its shorter side resized to `size`; uint8 (3, h, w).

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            image = to_rgb(ImageOps.exif_transpose(opened), background)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{file}: cannot be read as an image ({error})") from error
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(height, width, 3).permute(2, 0, 1).contiguous()


def read_captions(folder: Path, given: str | None) -> dict[str, str]:
    """Return file name -> caption from a table in the folder, or nothing.

    Raises:
        InputError: a line without file_name or without a text, with its number.
    """
    names = [given] if given else ["metadata.jsonl", "captions.csv"]
    for name in names:
        file = folder / name
        if file.exists():
            return read_table(file)
    if given:
        raise InputError(f"{folder / given}: no such file")
    return {}


def read_table(file: Path) -> dict[str, str]:
    """Read a .jsonl or .csv of file names and captions."""
    with open(file, encoding="utf-8-sig", newline="") as opened:
        if file.suffix == ".csv":
            rows = list(enumerate(csv.DictReader(opened), start=2))
        else:
            rows = [
                (number, parse_line(file, number, line))
                for number, line in enumerate(opened, 1)
                if line.strip()
            ]
    captions = {}
    for number, row in rows:
        text = next((row[key] for key in TEXT_KEYS if row.get(key) is not None), None)
        if not row.get("file_name") or text is None:
            raise InputError(f"{file}, line {number}: expected file_name and one of {', '.join(TEXT_KEYS)}")
        captions[Path(row["file_name"]).as_posix()] = str(text)
    return captions


def parse_line(file: Path, number: int, line: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {number}: is not JSON ({error.msg})") from error
    if not isinstance(row, dict):
        raise InputError(f"{file}, line {number}: expected an object with file_name and text")
    return row


def caption_of(file: Path, folder: Path, texts: dict[str, str]) -> str:
    """Return the caption of an image, or an empty text."""
    name = file.relative_to(folder).as_posix()
    if name in texts:
        return texts[name]
    beside = file.with_suffix(".txt")
    return beside.read_text(encoding="utf-8-sig").strip() if beside.exists() else ""
