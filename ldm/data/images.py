"""A folder of images with captions (`ldm.data.captions`).

All images are checked when the data set is made (`ldm.data.folder`), and opened when they are drawn; small
sets are kept in memory as uint8. Every random choice comes from the generator that the caller passes.
"""

import logging
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ldm.data.captions import captions_of
from ldm.data.folder import SUFFIXES, described, image_files, unreadable
from ldm.errors import InputError
from ldm.imaging.files import open_image, quietly
from ldm.wording import counted

log = logging.getLogger(__name__)

MAX_ASPECT = 4  # of a longer image, the middle is used


class CaptionedImages:
    """Random square crops of the images of a folder.

    Args:
        path: the folder; sub-folders count.
        size: side of the crops, in pixels; the shorter side is resized to it first.
        split: "train", "held_out" (every `held_out_every`-th image by name) or "all".
        mirror: flip half of the images.
        random_crop: crop anywhere instead of in the centre.
        captions: the only table of captions to read, relative to the folder.
        memory_mb: keep decoded images up to this much.
        background: grey level, 0 to 255, put behind transparent images.
        skip_bad: leave out images that cannot be read, instead of refusing the folder.
        no_captions: train a text-conditional model without any caption.

    Raises:
        InputError: the folder, an image, a caption or an argument cannot be used.
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
        skip_bad: bool = False,
        no_captions: bool = False,
    ) -> None:
        folder = Path(path)
        if not folder.is_dir():
            where = "" if folder.is_absolute() else f" in the working folder, {Path.cwd()}"
            raise InputError(f"path {path}: there is no such folder{where}; expected one with images")
        if split not in ("train", "held_out", "all"):
            raise InputError(f"split {split!r}: expected train, held_out or all")
        if held_out_every < 2:
            raise InputError(f"held_out_every {held_out_every}: expected 2 or more, as some images train")
        for name, value, low, high in (
            ("size", size, 1, 65535), ("memory_mb", memory_mb, 0, 2**40), ("background", background, 0, 255),
        ):  # fmt: skip
            if not low <= value <= high:
                raise InputError(f"{name} {value}: expected {low} to {high}")
        say = split != "held_out"  # once for both parts
        everything = self.found(folder, captions, say)
        bad = _checked(folder, [file for files, _ in everything for file in files], skip_bad, say)
        if len(everything) - len(bad) == 1:
            split = _only_one(path, split, say)
        kept = [
            each
            for i, each in enumerate(everything)
            if bad.keys().isdisjoint(each[0])
            and (split == "all" or (i % held_out_every == 0) == (split == "held_out"))
        ]
        if not kept:
            raise InputError(f"{path}: contains no images ({', '.join(SUFFIXES)}) for split {split}")
        self.folder = folder
        self.examples = [files for files, _ in kept]
        self.files = [files[0] for files, _ in kept]
        self.captions = [text for _, text in kept]
        self.size = size
        self.mirror = mirror
        self.random_crop = random_crop
        self.background = background
        self.no_captions = no_captions
        self.room = memory_mb * 2**20
        self.kept: dict[int, Tensor] = {}
        without = self.captions.count("")
        if without and say:
            log.warning("%s: %d of %s without a caption", path, without, counted(len(self.files), "image"))

    def found(self, folder: Path, captions: str | None, say: bool) -> list[tuple[tuple[Path, ...], str]]:
        """Return the files of each example, the image first, and its caption. Raises: InputError."""
        files = image_files(folder, say)
        texts = captions_of(folder, files, captions, say)
        return [((file,), text) for file, text in zip(files, texts, strict=True)]

    def check_captions(self) -> None:
        """Refuse to train a text-conditional model if no image has a caption and that was not asked for.

        Raises: InputError.
        """
        if not (any(self.captions) or self.no_captions):
            raise InputError(
                f"{self.folder}: no image has a caption, and the model learns from captions; expected "
                "metadata.jsonl, captions.csv, or NAME.txt or NAME.caption next to each image. To train "
                "without captions, set no_captions: true"
            )

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
        image = self.read(self.examples[row])
        self.room -= image.numel()
        if self.room > 0:
            self.kept[row] = image
        return image

    def read(self, files: tuple[Path, ...]) -> Tensor:
        """Return the files of an example, resized, uint8 (c, h, w). Raises: InputError."""
        return read_image(files[0], self.size, self.background)


def _checked(folder: Path, files: list[Path], skip_bad: bool, say: bool) -> dict[Path, str]:
    """Return the images that cannot be read, which are left out."""
    bad = unreadable(folder, files)
    for file, reason in bad.items():
        log.debug("%s: %s", file, reason)
    if bad and not skip_bad:
        advice = "mend or remove them, or set skip_bad: true to leave them out"
        raise InputError(f"{described(folder, bad, len(files))}; {advice}")
    if bad and say:
        log.warning("%s; they are left out", described(folder, bad, len(files)))
    return bad


def _only_one(path: str, split: str, say: bool) -> str:
    """Return the split of a folder with one image, which all of them contain."""
    if split == "train" and say:
        log.info("%s: contains one image, which is trained on; nothing is held out", path)
    return "all"


def read_image(file: Path, size: int, background: int) -> Tensor:
    """Open an image upright as RGB with its shorter side resized to `size`; uint8 (3, h, w).

    The middle is cut out first if the longer side is more than MAX_ASPECT times the shorter.

    Raises:
        InputError: it cannot be read.
    """
    with quietly():
        image = open_image(file, background=background)
    most = MAX_ASPECT * min(image.size)
    left, top = (max(0, side - most) // 2 for side in image.size)
    image = image.crop((left, top, min(image.width, left + most), min(image.height, top + most)))
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)  # nothing at the same size
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(height, width, 3).permute(2, 0, 1).contiguous()
