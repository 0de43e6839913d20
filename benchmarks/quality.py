"""Tools to measure the quality of the demo models: figures, the judging CLIP, requests, and the sheet.

Proportions have their 95 % interval (Wilson 1927). The judge is the project's own small CLIP, which makes
errors: its figures for generated images are to be compared with those for real images.
"""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from demo.captions import BACKGROUNDS, WHITE, caption
from demo.scenes import EmojiScenes
from ldm.checkpoint import load_checkpoint
from ldm.models.image_clip import CLIPModel
from ldm.prompts.tokenizer import Tokenizer

COLOURS: dict[str | None, tuple[int, int, int]] = {None: WHITE, **BACKGROUNDS}
TEXT_TOWER = "cond_stage_model.model."  # in a checkpoint: the text tower of the CLIP that judges


# --- measures: images are (n, 3, h, w) in -1..1 -----------------------------------------------------------


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, for values that span 2."""
    error = (images.clamp(-1, 1) - references).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-10))


def corner_colours(images: Tensor) -> list[str | None]:
    """Name the colour of each ground: nearest to the median of the four corner patches, None for white."""
    side = max(1, images.shape[-1] // 32)
    rows = torch.cat([images[:, :, :side], images[:, :, -side:]], dim=2)
    patches = torch.cat([rows[..., :side], rows[..., -side:]], dim=3)  # (n, 3, 2 s, 2 s)
    colour = (patches.flatten(2).median(dim=2).values + 1) * 127.5  # (n, 3)
    table = torch.tensor(list(COLOURS.values()), dtype=colour.dtype)
    nearest = torch.cdist(colour, table).argmin(dim=1)
    return [list(COLOURS)[i] for i in nearest.tolist()]


def recall(similarity: Tensor, wanted: Tensor, k: int) -> Tensor:
    """Return for each row of similarity (n, labels) whether the wanted label is among the k most similar."""
    return (similarity.topk(min(k, similarity.shape[1]), dim=1).indices == wanted[:, None]).any(dim=1)


def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middle squares of the left and the right half."""
    side = images.shape[-1] // 2
    middle = images[:, :, side // 2 : side // 2 + side]
    return middle[..., :side], middle[..., side:]


def in_order(left: Tensor, right: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Whether the embedded halves (n, d) fit the embedded texts better as written than swapped."""
    as_written = (left * first).sum(1) + (right * second).sum(1)
    swapped = (left * second).sum(1) + (right * first).sum(1)
    return as_written > swapped


def nearest_distance(images: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Return root mean square difference to the nearest reference, in 0..1, and which one it is."""
    flat, others = (x.clamp(-1, 1).flatten(1) for x in (images, references))
    distances = torch.cdist(flat, others) / (2 * flat.shape[1] ** 0.5)
    return distances.min(dim=1)


def proportion(hits: Any) -> dict[str, Any]:
    """Return share, n and 95 % interval (Wilson 1927) of true values."""
    hits = torch.as_tensor(hits, dtype=torch.float64)
    n = len(hits)
    if n == 0:
        return {"value": None, "n": 0}
    share, z = hits.mean().item(), 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return {"value": share, "n": n, "interval": [centre - half, centre + half]}


def average(values: Tensor) -> dict[str, Any]:
    """Return mean, smallest and n."""
    if len(values) == 0:
        return {"value": None, "n": 0}
    return {"value": values.mean().item(), "min": values.min().item(), "n": len(values)}


# --- the judge ----------------------------------------------------------------------------------------------


def clip_weights(file: Path, checkpoint: Path) -> dict[str, Tensor]:
    """Return both towers; a file of the image tower alone is completed by the text tower in `checkpoint`."""
    weights = load_file(file)
    if all(name.startswith("visual.") for name in weights):
        for name, tensor in load_checkpoint(checkpoint).items():
            if name.startswith(TEXT_TOWER):
                weights[name.removeprefix(TEXT_TOWER)] = tensor
    return weights


class ImageClip:
    """The project's own CLIP, of a JSON architecture, images shrunk by averaging."""

    def __init__(self, weights: dict[str, Tensor], arch: Path, bpe: Path) -> None:
        described = json.loads(arch.read_text(encoding="utf-8"))
        self.model = CLIPModel(described, text_blocks=True)
        self.model.load_state_dict(weights)
        self.model.eval().float()
        self.size = described["vision_cfg"]["image_size"]
        self.tokenizer = Tokenizer(bpe, context_length=described["text_cfg"]["context_length"])

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embed images (n, 3, h, w) to unit vectors (n, d)."""
        mode = "area" if images.shape[-1] >= self.size else "bilinear"
        shrunk = [F.interpolate(part, size=(self.size, self.size), mode=mode) for part in images.split(256)]
        return torch.cat([F.normalize(self.model.encode_image(part), dim=-1) for part in shrunk])

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """Embed captions to unit vectors (n, d)."""
        return F.normalize(self.model.encode_text(self.tokenizer(texts)), dim=-1)


# --- what is asked for --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """One prompt: the cell, or two of them, and the ground that it names."""

    label: str
    style: str
    colour: str | None
    second: str | None = None

    def prompt(self, scenes: EmojiScenes) -> str:
        phrase = scenes.phrase(self.label)
        second = None if self.second is None else scenes.phrase(self.second)
        return caption(phrase, self.style, second=second, colour=self.colour)


def real_images(asked: list[Asked], scenes: EmojiScenes) -> Tensor:
    """Return the real images of what is asked for, (n, 3, h, w)."""
    found = [scenes.render(a.label, a.style, background=a.colour, second=a.second)[0] for a in asked]
    return torch.stack(found) if found else torch.empty(0, 3, scenes.size, scenes.size)


def single_requests(scenes: EmojiScenes, limit: int, generator: torch.Generator) -> list[Asked]:
    """Ask for cells of a split in random order, grounds in turn; 0 asks for each once."""
    order = torch.randperm(len(scenes), generator=generator).tolist()[: limit or None]
    colours = list(COLOURS)
    cells = [scenes.cells[i] for i in order]
    return [Asked(c["label"], c["style"], colours[i % len(colours)]) for i, c in enumerate(cells)]


def pair_requests(scenes: EmojiScenes, limit: int, generator: torch.Generator) -> list[Asked]:
    """Ask for two different concepts of one style side by side, on white."""
    pairs = []
    for asked in single_requests(scenes, limit, generator):
        others = [c["label"] for c in scenes.cells if c["style"] == asked.style and c["label"] != asked.label]
        if others:
            second = others[int(torch.randint(len(others), (), generator=generator))]
            pairs.append(Asked(asked.label, asked.style, None, second))
    return pairs


def retrieval(clip: ImageClip, scenes: EmojiScenes, asked: list[Asked], images: Tensor) -> dict[str, Any]:
    """Order all labels by similarity to each image; the texts differ in the concept only."""
    labels = scenes.labels
    wanted = torch.tensor([labels.index(one.label) for one in asked])
    embedded = clip.images(images)
    similarity = torch.empty(len(asked), len(labels))
    for style, colour in {(one.style, one.colour) for one in asked}:
        rows = [i for i, one in enumerate(asked) if (one.style, one.colour) == (style, colour)]
        texts = [Asked(label, style, colour).prompt(scenes) for label in labels]
        similarity[rows] = embedded[rows] @ clip.texts(texts).T
    found = {f"recall_at_{k}": proportion(recall(similarity, wanted, k)) for k in (1, 5)}
    return {**found, "labels": len(labels)}


# --- what is shown of it ------------------------------------------------------------------------------------


def sample_sheet(samples: list[tuple[str, Tensor]], columns: int = 8) -> Image.Image:
    """Lay images out with their prompts below them."""
    if not samples:
        return Image.new("RGB", (16, 16), "white")
    side, margin, text_height = samples[0][1].shape[-1], 8, 36
    width, height = side + margin, side + text_height
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    drawing = ImageDraw.Draw(sheet)
    for index, (prompt, image) in enumerate(samples):
        left, top = index % columns * width, index // columns * height
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)), (left, top))
        for line, text in enumerate(textwrap.wrap(prompt, side // 6)[:3]):
            drawing.text((left, top + side + 11 * line), text, fill="black")
    return sheet


def summary(measures: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one line a figure: name, value, n, interval."""
    lines = []
    for name, value in measures.items():
        if not isinstance(value, dict):
            continue
        if "value" not in value:
            lines += summary(value, f"{prefix}{name} ")
        elif value["value"] is not None:
            low_high = "{:.3f}..{:.3f}".format(*value["interval"]) if "interval" in value else ""
            least = f"least {value['min']:.3f}" if "min" in value else ""
            lines.append(f"{prefix + name:<58} {value['value']:7.3f}  n={value['n']:<5} {low_high}{least}")
    return lines
