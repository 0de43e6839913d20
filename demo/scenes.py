"""Scenes of emoji on a coloured ground, with captions: the demo model's data.

    image = alpha * sprite + (1 - alpha) * background,   in -1..1

Sprites are kept premultiplied by alpha at a few sizes; a batch is composed by copying them into one uint8
canvas and blending it once. Every random choice comes from the caller's generator, so a seed is a data set.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from demo.captions import BACKGROUNDS, WHITE, caption
from demo.extra_inputs import check_extra_input, make_extra_input
from ldm.errors import InputError

SINGLE_SCALES = (0.84, 0.88, 0.92)  # of the image's side
PAIR_SCALE = 0.46
_COLOURS = tuple(BACKGROUNDS)


@dataclass(frozen=True)
class Placed:
    """One sprite in a scene: which cell, at which scale, mirrored or not, and its top left corner."""

    cell: int
    scale: float
    flip: bool
    top: int
    left: int


class EmojiScenes:
    """Batches of captioned scenes from the folder that demo/make_emoji.py writes.

    path                      folder of sprites.npy and manifest.json
    split                     train: without held-out cells; held_out: only those; all
    size                      pixels of a scene's side; None: that of the sprites
    styles, concepts          keep only these styles and labels; None: all. `concepts` may be a file of labels
    two_object_fraction       scenes "X next to Y"
    background_fraction       scenes on one of the ten named colours; others are white and do not say so
    everyday_fraction         everyday name ("car") in place of the label ("automobile"), where there is one
    tag_fraction              captions with a tag behind the phrase
    bare_label_fraction       captions that are the label and nothing else (on white, one object)
    empty_caption_fraction    captions that are empty
    extra_input               mask, depth or small (demo.extra_inputs): a batch's third part
    crop                      side of a random crop of each scene; None: the whole scene
    device                    where sprites live and images are composed; the choices are drawn on the CPU
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        size: int | None = None,
        styles: Iterable[str] | None = None,
        concepts: str | Path | Iterable[str] | None = None,
        two_object_fraction: float = 0.2,
        background_fraction: float = 0.6,
        tag_fraction: float = 0.15,
        everyday_fraction: float = 0.25,
        bare_label_fraction: float = 0.1,
        empty_caption_fraction: float = 0.0,
        extra_input: str | None = None,
        crop: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if split not in ("train", "held_out", "all"):
            raise InputError(f"split {split!r}: expected train, held_out or all")
        check_extra_input(extra_input)
        sprites, manifest = _read(Path(path))
        wanted = _selection(split, styles, concepts)
        kept = [entry for entry in manifest["sprites"] if wanted(entry)]
        if not kept:
            raise InputError(
                f"{path}: no sprite left for split {split!r} and styles {styles}; choose more concepts"
            )
        self.size = size or manifest["size"]
        if crop is not None and not 0 < crop <= self.size:
            raise InputError(f"crop {crop}: expected 1 to {self.size}, the side of the scenes")
        self.extra_input = extra_input
        self.crop = crop
        self.split = split
        self.cells: list[dict[str, Any]] = kept
        self.styles: list[str] = list(dict.fromkeys(entry["style"] for entry in kept))
        self.labels: list[str] = list(dict.fromkeys(entry["label"] for entry in kept))
        self.two_object_fraction = two_object_fraction
        self.background_fraction = background_fraction
        self.tag_fraction = tag_fraction
        self.everyday_fraction = everyday_fraction
        self.bare_label_fraction = bare_label_fraction
        self.empty_caption_fraction = empty_caption_fraction
        self.device = torch.device(device)
        self._of_style = {
            style: [i for i, entry in enumerate(kept) if entry["style"] == style] for style in self.styles
        }
        self._index = {(entry["label"], entry["style"]): i for i, entry in enumerate(kept)}
        rows = np.ascontiguousarray(sprites[[entry["index"] for entry in kept]])
        self._sprites = {
            scale: _resized(rows, round(scale * self.size), self.device)
            for scale in (*SINGLE_SCALES, PAIR_SCALE)
        }

    def __len__(self) -> int:
        """Return the number of (concept, style) cells of this split."""
        return len(self.cells)

    def batch(self, generator: torch.Generator, batch_size: int) -> tuple[Any, ...]:
        """Return random scenes, images (b, 3, size, size) in -1..1, captions, extra input if asked."""
        draws = torch.rand(batch_size, 17, generator=generator).tolist()
        scenes = [self._random_scene(draw) for draw in draws]
        colours = [colour for _, colour, _ in scenes]
        captions = [text for _, _, text in scenes]
        canvas = self._canvas([placed for placed, _, _ in scenes])
        if self.crop is not None:
            canvas = _random_crops(canvas, self.crop, generator)
        images = self._blend(canvas, colours)
        if self.extra_input is None:
            return images, captions
        alpha = canvas[:, 3:].float() / 255
        return images, captions, make_extra_input(self.extra_input, images, alpha, generator)

    def render(
        self,
        label: str,
        style: str = "3d",
        background: str | None = None,
        flip: bool = False,
        second: str | None = None,
        scale: float = SINGLE_SCALES[1],
    ) -> tuple[Tensor, str]:
        """Return one scene without chance, centred: image (3, size, size) in -1..1 and its caption.

        `second` stands to the right of `label`; `scale`, of a single object, is one of SINGLE_SCALES.
        Raises: InputError for a cell that is not in this split, a colour or a scale that there is not.
        """
        if background is not None and background not in BACKGROUNDS:
            raise InputError(f"background {background!r}: expected one of {', '.join(BACKGROUNDS)}")
        if scale not in SINGLE_SCALES:
            raise InputError(f"scale {scale}: expected one of {', '.join(map(str, SINGLE_SCALES))}")
        cells = [self._cell(label, style)] + ([] if second is None else [self._cell(second, style)])
        if second is None:
            placed = [self._placed(cells[0], scale, flip, 0.5, 0.5)]
        else:
            placed = [self._half(cell, side, flip, 0.5, 0.5) for side, cell in enumerate(cells)]
        text = self._caption(cells, None, background, [False, False])
        return self._blend(self._canvas([placed]), [background])[0], text

    def phrase(self, label: str) -> str:
        """Return the label as captions have it, with its article. Raises: InputError for an unknown one."""
        for cell in self.cells:
            if cell["label"] == label:
                return cell["phrase"]
        raise InputError(f"no emoji of {label!r} in split {self.split!r}; see .labels")

    def _cell(self, label: str, style: str) -> int:
        if (label, style) not in self._index:
            raise InputError(f"no {style} emoji of {label!r} in split {self.split!r}; see .labels, .styles")
        return self._index[label, style]

    def _random_scene(self, draw: list[float]) -> tuple[list[Placed], str | None, str]:
        """Turn seventeen uniform draws into sprites, background colour and caption."""
        u_cell, u_second, u_pair, u_ground, u_colour, u_words, u_tag, u_which, u_scale, *rest = draw
        u_flip, u_flip_second, u_top, u_left, u_top_second, u_left_second, *u_names = rest
        first = _pick(range(len(self.cells)), u_cell)
        colour = _COLOURS[int(u_colour * len(_COLOURS))] if u_ground < self.background_fraction else None
        fellows = self._of_style[self.cells[first]["style"]]
        if u_pair < self.two_object_fraction and len(fellows) > 1:
            # Any of the others of the same style, evenly.
            rank = fellows.index(first)
            second = fellows[(rank + 1 + int(u_second * (len(fellows) - 1))) % len(fellows)]
            placed = [
                self._half(first, 0, u_flip < 0.5, u_top, u_left),
                self._half(second, 1, u_flip_second < 0.5, u_top_second, u_left_second),
            ]
            cells = [first, second]
        else:
            scale = _pick(SINGLE_SCALES, u_scale)
            placed, cells = [self._placed(first, scale, u_flip < 0.5, u_top, u_left)], [first]
        if u_words < self.empty_caption_fraction:
            return placed, colour, ""
        if u_words > 1 - self.bare_label_fraction and len(cells) == 1:
            everyday = self.cells[first]["everyday"] if u_names[0] < self.everyday_fraction else None
            return placed, None, everyday or self.cells[first]["label"]
        tags = self.cells[first]["tags"]
        tag = _pick(tags, u_which) if tags and len(cells) == 1 and u_tag < self.tag_fraction else None
        everyday = [u < self.everyday_fraction for u in u_names]
        return placed, colour, self._caption(cells, tag, colour, everyday)

    def _caption(self, cells: list[int], tag: str | None, colour: str | None, everyday: list[bool]) -> str:
        phrases = [
            (use_everyday and self.cells[cell]["everyday_phrase"]) or self.cells[cell]["phrase"]
            for cell, use_everyday in zip(cells, everyday, strict=False)
        ]
        second = phrases[1] if len(phrases) > 1 else None
        return caption(phrases[0], self.cells[cells[0]]["style"], second=second, tag=tag, colour=colour)

    def _placed(self, cell: int, scale: float, flip: bool, u_top: float, u_left: float) -> Placed:
        """Put one sprite near the middle: anywhere in the inner half of the free room."""
        room = self.size - round(scale * self.size)
        top, left = (round(room * (0.25 + 0.5 * u)) for u in (u_top, u_left))
        return Placed(cell, scale, flip and self.cells[cell]["mirrorable"], top, left)

    def _half(self, cell: int, side: int, flip: bool, u_top: float, u_left: float) -> Placed:
        """Put one of two sprites into its half, side 0 left and 1 right, near the middle line."""
        side_px = round(PAIR_SCALE * self.size)
        left = round((self.size // 2 - side_px) * u_left) + side * (self.size // 2)
        top = round((self.size - side_px) * (0.4 + 0.2 * u_top))
        return Placed(cell, PAIR_SCALE, flip and self.cells[cell]["mirrorable"], top, left)

    def _canvas(self, scenes: list[list[Placed]]) -> Tensor:
        """Copy each scene's sprites into its place, premultiplied uint8 (b, 4, h, w)."""
        canvas = torch.zeros(len(scenes), 4, self.size, self.size, dtype=torch.uint8, device=self.device)
        for row, scene in zip(canvas, scenes, strict=True):
            for item in scene:
                sprite = self._sprites[item.scale][item.cell]  # (4, s, s)
                bottom, right = item.top + sprite.shape[1], item.left + sprite.shape[2]
                row[:, item.top : bottom, item.left : right] = sprite.flip(2) if item.flip else sprite
        return canvas

    def _blend(self, canvas: Tensor, colours: list[str | None]) -> Tensor:
        """Lay scenes (b, 4, h, w), uint8, over plain grounds: float (b, 3, h, w) in -1..1."""
        grounds = [WHITE if colour is None else BACKGROUNDS[colour] for colour in colours]
        ground = torch.tensor(grounds, device=self.device, dtype=torch.float32)
        ground = ground[:, :, None, None]  # (b, 3, 1, 1)
        images = canvas[:, :3].float()
        images += (1 - canvas[:, 3:].float() / 255) * ground
        return images.mul_(2 / 255).sub_(1).clamp_(-1, 1)


def _random_crops(canvas: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Return a random square (b, c, side, side) of each of (b, c, h, w)."""
    room = canvas.shape[-1] - side + 1
    corners = (torch.rand(len(canvas), 2, generator=generator) * room).long().tolist()
    pairs = zip(canvas, corners, strict=True)
    return torch.stack([row[:, top : top + side, left : left + side] for row, (top, left) in pairs])


def _pick(choices: Any, u: float) -> Any:
    return choices[int(u * len(choices))]


def _read(folder: Path) -> tuple[np.ndarray, dict[str, Any]]:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sprites = np.load(folder / "sprites.npy", mmap_mode="r")
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no emoji data; run demo/make_emoji.py --fetch") from error
    if len(sprites) != len(manifest["sprites"]):
        expected = len(manifest["sprites"])
        raise InputError(f"{folder}: {len(sprites)} sprites, but {expected} in the manifest; make it again")
    return sprites, manifest


def _selection(split: str, styles: Iterable[str] | None, concepts: str | Path | Iterable[str] | None) -> Any:
    """Return wanted(entry) for the manifest's entries."""
    if isinstance(concepts, (str, Path)):
        from demo.source import read_labels

        concepts = read_labels(Path(concepts))
    kept_styles = None if styles is None else set(styles)
    kept_labels = None if concepts is None else set(concepts)

    def wanted(entry: dict[str, Any]) -> bool:
        if split != "all" and entry["held_out"] != (split == "held_out"):
            return False
        if kept_styles is not None and entry["style"] not in kept_styles:
            return False
        return kept_labels is None or entry["label"] in kept_labels

    return wanted


def _resized(sprites: np.ndarray, side: int, device: torch.device) -> Tensor:
    """Return sprites (n, h, w, 4), straight alpha, as premultiplied uint8 (n, 4, side, side)."""
    out = torch.empty(len(sprites), 4, side, side, dtype=torch.uint8)
    for start in range(0, len(sprites), 256):
        part = torch.from_numpy(sprites[start : start + 256]).permute(0, 3, 1, 2).float()  # (n, 4, h, w)
        part[:, :3] *= part[:, 3:] / 255
        part = F.interpolate(part, size=(side, side), mode="bicubic", antialias=True)
        out[start : start + 256] = part.round().clamp(0, 255).to(torch.uint8)
    # At sharp edges the filter leaves colours above their alpha, which would overshoot the ground.
    out[:, :3] = torch.minimum(out[:, :3], out[:, 3:])
    return out.to(device)
