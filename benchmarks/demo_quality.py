"""How good is the demonstration model? Figures with their sample sizes, and a sheet of samples to look at.

    python benchmarks/demo_quality.py [--limit 100]

    autoencoder    PSNR of decode(encode(x)), on training and on held-out pictures
    background     share of pictures whose corners are nearest to the right one of ten colours and white
    retrieval      share of pictures whose concept is the first, or among the first five, of all labels,
                   ordered by the similarity that the project's own CLIP sees (R@1, R@5)
    order          share of scenes "X next to Y" with X left and Y right, by that CLIP on the two halves
    nearest        root mean square difference to the nearest training picture, in 0..1, at 64 pixels

Figures that CLIP judges stand beside those of real pictures: it is small and errs itself. Proportions carry
their 95 % interval (Wilson 1927). "held_out" means cells (concept, style) that training never saw.
"""

import argparse
import json
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ldm  # noqa: E402
from ldm.backends.device import resolve_device  # noqa: E402
from ldm.data.emoji import SINGLE_SCALES, EmojiScenes  # noqa: E402
from ldm.data.emoji_captions import BACKGROUNDS, WHITE, caption  # noqa: E402
from ldm.data.hints import inflated  # noqa: E402
from ldm.diffusion.guidance import ClassifierFreeGuidance  # noqa: E402
from ldm.diffusion.prediction import denoiser  # noqa: E402
from ldm.errors import InputError, LdmError  # noqa: E402
from ldm.models.image_clip import CLIPModel  # noqa: E402
from ldm.prompts.tokenizer import Tokenizer  # noqa: E402
from ldm.samplers import make_sampler, sample_loop  # noqa: E402
from ldm.tasks.sampling import Settings  # noqa: E402
from ldm.tasks.txt2img import txt2img  # noqa: E402

COLOURS: dict[str | None, tuple[int, int, int]] = {None: WHITE, **BACKGROUNDS}
TEXT_TOWER = "cond_stage_model.model."  # in a checkpoint: the text tower of the CLIP that judges
COPY_DISTANCE = 0.05  # below it a picture counts as a copy: what an autoencoder of 26 dB does to a real one


# --- measures: pictures are (n, 3, h, w) in -1..1 -----------------------------------------------------------


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each picture in dB, for values that span 2."""
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


# --- measures of the conditional tasks ----------------------------------------------------------------------


def inpaint_agreement(clip: Any, images: Tensor, mask: Tensor, texts: Tensor, wanted: Tensor) -> Tensor:
    """Whether the painted region is nearest to its own text among all `texts` (labels, d), for each picture.

    The region is the mask's bounding box, seen alone; mask (n, 1, h, w), 1 where painted.
    """
    seen = torch.cat([clip.images(bounding_box(x, m)[None]) for x, m in zip(images, mask, strict=True)])
    return recall(seen @ texts.T, wanted, 1)


def bounding_box(image: Tensor, mask: Tensor) -> Tensor:
    """Cut the rectangle around the mask (1, h, w) out of the picture (3, h, w); all of it for no mask."""
    rows, columns = (mask[0].amax(dim=dim).nonzero()[:, 0] for dim in (1, 0))
    if len(rows) == 0:
        return image
    return image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def kept_error(images: Tensor, originals: Tensor, mask: Tensor) -> Tensor:
    """Return the root mean square difference outside the mask, in 0..1, of each picture."""
    kept = (1 - mask).expand_as(images)
    error = ((images.clamp(-1, 1) - originals).square() * kept).sum(dim=(1, 2, 3))
    return (error / kept.sum(dim=(1, 2, 3)).clamp_min(1)).sqrt() / 2


def seen_depth(images: Tensor, threshold: float = 0.25) -> Tensor:
    """Inflate what stands out from the ground, the median of the corners; (n, 1, h, w), 0..1."""
    side = max(1, images.shape[-1] // 32)
    rows = torch.cat([images[:, :, :side], images[:, :, -side:]], dim=2)
    ground = torch.cat([rows[..., :side], rows[..., -side:]], dim=3).flatten(2).median(dim=2).values
    distance = (images - ground[:, :, None, None]).abs().amax(dim=1, keepdim=True)
    return inflated((distance > threshold).float())


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Return Pearson's correlation of each pair of maps (n, ...); 0 where one of them is flat."""
    a, b = (x.flatten(1) - x.flatten(1).mean(dim=1, keepdim=True) for x in (one, other))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)


def depth_agreement(images: Tensor, depth: Tensor) -> Tensor:
    """Correlate the depth asked for, (n, 1, h, w), with that of the picture's own shape."""
    return correlation(seen_depth(images), depth)


def enlarged(small: Tensor, factor: int, kernel: str) -> Tensor:
    """Enlarge pictures (n, 3, h, w) in -1..1 by Pillow's "bicubic" or "lanczos", in 8 bits."""
    pictures = ((small.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    size = (small.shape[-1] * factor, small.shape[-2] * factor)
    resampling = Image.Resampling[kernel.upper()]
    large = [np.asarray(Image.fromarray(picture).resize(size, resampling)) for picture in pictures]
    return torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).float() / 127.5 - 1


def upscale_psnr(images: Tensor, small: Tensor, originals: Tensor) -> dict[str, Any]:
    """Return PSNR of the result and of both interpolations, and how often the result beats each."""
    ours = psnr(images, originals)
    found = {"model": average(ours)}
    for kernel in ("bicubic", "lanczos"):
        theirs = psnr(enlarged(small, originals.shape[-1] // small.shape[-1], kernel), originals)
        found |= {kernel: average(theirs), f"beats_{kernel}": proportion(ours > theirs)}
    return found


def variation_retrieval(clip: Any, variations: Tensor, sources: Tensor, k: int = 1) -> Tensor:
    """Whether each variation finds its own source among all sources, by the CLIP."""
    similarity = clip.images(variations) @ clip.images(sources).T
    return recall(similarity, torch.arange(len(sources)), k)


# --- making pictures with the conditional models ------------------------------------------------------------


@torch.no_grad()
def sample_conditional(
    model: Any, cond: Any, shape: tuple[int, ...], steps: int = 20, scale: float = 4.0, seed: int = 42
) -> Tensor:
    """Return pictures for what a model's own `conditioning` gave, by DPM-Solver++ from fixed noise.

    Args:
        shape: (n, c, h, w) of the latents.
    """
    context = model.get_unconditional_conditioning(shape[0])
    denoise = denoiser(model.apply_model, model.schedule, model.parameterization)
    guided = ClassifierFreeGuidance(denoise, model.unconditional(cond, context), scale)
    x_t = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
    for step in sample_loop(make_sampler("dpm", model.schedule, steps), guided, x_t, cond):
        x_t = step.x_t
    return model.decode_first_stage(x_t).float().cpu().clamp(-1, 1)


# --- the judge ----------------------------------------------------------------------------------------------


def clip_weights(file: Path, checkpoint: Path) -> dict[str, Tensor]:
    """Return both towers; a file of the image tower alone is completed by the text tower in `checkpoint`."""
    from safetensors.torch import load_file

    weights = load_file(file)
    if all(name.startswith("visual.") for name in weights):
        for name, tensor in load_file(checkpoint).items():
            if name.startswith(TEXT_TOWER):
                weights[name.removeprefix(TEXT_TOWER)] = tensor
    return weights


class PictureClip:
    """The project's own CLIP, of a JSON architecture, pictures shrunk by averaging."""

    def __init__(self, weights: dict[str, Tensor], arch: Path, bpe: Path) -> None:
        described = json.loads(arch.read_text(encoding="utf-8"))
        self.model = CLIPModel(described, text_blocks=True)
        self.model.load_state_dict(weights)
        self.model.eval().float()
        self.size = described["vision_cfg"]["image_size"]
        self.tokenizer = Tokenizer(bpe, context_length=described["text_cfg"]["context_length"])

    @torch.no_grad()
    def images(self, images: Tensor) -> Tensor:
        """Embed pictures (n, 3, h, w) to unit vectors (n, d)."""
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


def pictures(asked: list[Asked], scenes: EmojiScenes) -> Tensor:
    """Return the real pictures of what is asked for, (n, 3, h, w)."""
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


# --- the benchmark ------------------------------------------------------------------------------------------


class Benchmark:
    """Pictures and figures of one model."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        device = resolve_device(options.device)
        self.model = ldm.load_model(options.config, options.ckpt, device=device, dtype="float32")
        self.size = self.model.image_size * self.model.downsampling_factor
        styles = options.styles.split(",") if options.styles else None
        concepts = options.concepts or None
        self.train, self.held_out, self.all = (
            EmojiScenes(options.data, split, size=self.size, styles=styles, concepts=concepts)
            for split in ("train", "held_out", "all")
        )
        weights = clip_weights(options.clip, options.ckpt)
        self.clip = PictureClip(weights, options.clip_arch, options.clip_bpe)
        self.seconds_per_picture = 0.0
        self.samples: dict[str, list[tuple[str, Tensor]]] = {}

    def run(self) -> dict[str, Any]:
        measures: dict[str, Any] = {"autoencoder_psnr_db": self.autoencoder()}
        for name, scenes in (("known", self.train), ("held_out", self.held_out)):
            asked = single_requests(scenes, self.options.limit, self._generator(name))
            images = self.generate(name, asked)
            measures[name] = self.judge(asked, images)
            print(f"{name}: {len(asked)} pictures measured", flush=True)
        asked = pair_requests(self.train, self.options.limit, self._generator("pairs"))
        measures["left_right_order"] = self.judge_order(asked, self.generate("pairs", asked))
        return measures

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.options.seed * 1000 + sum(name.encode()))

    def autoencoder(self) -> dict[str, Any]:
        """Measure what encoding (the posterior's mean) and decoding lose."""
        found = {}
        for name, scenes in (("known", self.train), ("held_out", self.held_out)):
            asked = single_requests(scenes, self.options.limit, self._generator(name))
            real = pictures(asked, scenes)
            found[name] = average(psnr(self._autoencoded(real), real))
        return found

    def generate(self, name: str, asked: list[Asked]) -> Tensor:
        """Make the pictures asked for, (n, 3, h, w) in -1..1."""
        options = self.options
        settings = Settings(sampler=options.sampler, num_steps=options.steps, guidance_scale=options.scale)
        prompts = [one.prompt(self.all) for one in asked]
        began = time.perf_counter()
        parts = [
            batch.images.clamp(-1, 1)
            for batch in txt2img(
                self.model, prompts, seed=options.seed, height=self.size, width=self.size,
                batch_size=options.batch_size, settings=settings,
            )
        ]  # fmt: skip
        self.seconds_per_picture = (time.perf_counter() - began) / max(1, len(prompts))
        images = torch.cat(parts) if parts else torch.empty(0, 3, self.size, self.size)
        self.samples[name] = list(zip(prompts, images, strict=True))
        return images

    def judge(self, asked: list[Asked], images: Tensor) -> dict[str, Any]:
        """Measure ground, retrieval and distance, for generated pictures and for the real ones asked for."""
        if not asked:
            return {"n": 0}
        real = pictures(asked, self.all)
        colours = [one.colour for one in asked]
        right = [found == wanted for found, wanted in zip(corner_colours(images), colours, strict=True)]
        named = [hit for hit, wanted in zip(right, colours, strict=True) if wanted is not None]
        found = {"background": proportion(right), "background_named": proportion(named)}
        for name, judged in (("retrieval", images), ("retrieval_real_pictures", real)):
            found[name] = self.retrieval(asked, judged)
        found["nearest"] = self.nearest(asked, images)
        found["nearest_autoencoded"] = self.nearest(asked, self._autoencoded(real))
        return found

    def retrieval(self, asked: list[Asked], images: Tensor) -> dict[str, Any]:
        """Order all labels by similarity; the texts differ in the concept only."""
        labels = self.all.labels
        wanted = torch.tensor([labels.index(one.label) for one in asked])
        embedded = self.clip.images(images)
        similarity = torch.empty(len(asked), len(labels))
        for style, colour in {(one.style, one.colour) for one in asked}:
            rows = [i for i, one in enumerate(asked) if (one.style, one.colour) == (style, colour)]
            texts = [Asked(label, style, colour).prompt(self.all) for label in labels]
            similarity[rows] = embedded[rows] @ self.clip.texts(texts).T
        found = {f"recall_at_{k}": proportion(recall(similarity, wanted, k)) for k in (1, 5)}
        return {**found, "labels": len(labels)}

    def nearest(self, asked: list[Asked], images: Tensor) -> dict[str, Any]:
        """Compare with all training pictures: on the ground asked for, centred, each size, both ways."""
        distances, same = torch.empty(len(asked)), torch.zeros(len(asked), dtype=torch.bool)
        for colour in {one.colour for one in asked}:
            rows = [i for i, one in enumerate(asked) if one.colour == colour]
            shown = [
                (cell, _small(self.train.render(cell["label"], cell["style"], colour, flip, scale=scale)[0]))
                for cell in self.train.cells
                for scale in SINGLE_SCALES
                for flip in ((False, True) if cell["mirrorable"] else (False,))
            ]
            references = torch.stack([picture for _, picture in shown])
            distances[rows], which = nearest_distance(_small(images[rows]), references)
            for row, index in zip(rows, which.tolist(), strict=True):
                same[row] = shown[index][0]["label"] == asked[row].label
        return {
            "rms_distance": average(distances),
            "copies": {**proportion(distances < COPY_DISTANCE), "below": COPY_DISTANCE},
            "nearest_shows_the_concept": proportion(same),
        }

    def judge_order(self, asked: list[Asked], images: Tensor) -> dict[str, Any]:
        """Measure whether X is left and Y right, for generated pictures and for real ones."""
        first = self.clip.texts([Asked(one.label, one.style, None).prompt(self.all) for one in asked])
        second = self.clip.texts([Asked(one.second, one.style, None).prompt(self.all) for one in asked])
        found = {}
        for name, judged in (("generated", images), ("real_pictures", pictures(asked, self.all))):
            left, right = (self.clip.images(half) for half in halves(judged))
            found[name] = proportion(in_order(left, right, first, second))
        return found

    @torch.no_grad()
    def _autoencoded(self, images: Tensor) -> Tensor:
        parts = [images[:0]]
        for part in images.split(self.options.batch_size):
            posterior = self.model.encode_first_stage(part.to(self.model.device))
            latents = self.model.get_first_stage_encoding(posterior.mode())
            parts.append(self.model.decode_first_stage(latents).float().cpu().clamp(-1, 1))
        return torch.cat(parts)


def _small(images: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(images, (64, 64))


def sample_sheet(samples: list[tuple[str, Tensor]], columns: int = 8) -> Image.Image:
    """Lay pictures out with their prompts below them."""
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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    demo = ROOT / "configs" / "demo"
    add = parser.add_argument
    add("--config", type=Path, default=demo / "emoji.yaml", help="the model's YAML")
    add("--ckpt", type=Path, default=demo / "emoji.safetensors", help="the model's weights")
    add("--data", type=Path, default=ROOT / "data" / "emoji" / "128", help="folder of make_emoji.py")
    add("--styles", default="", help="comma-separated styles that the model was trained on; default: all")
    add("--concepts", type=Path, help="file of the labels that it was trained on; default: all")
    add("--clip", type=Path, default=demo / "emoji_clip_image.safetensors", help="the CLIP that judges")
    add("--clip-arch", type=Path, default=demo / "emoji_clip.json", help="its architecture")
    add("--clip-bpe", type=Path, default=demo / "emoji_bpe.txt.gz", help="its merges")
    add("--limit", type=int, default=0, help="pictures a measure; 0: every cell once")
    add("--sampler", default="dpm", help="name of a sampler")
    add("--steps", type=int, default=25, help="sampler steps")
    add("--scale", type=float, default=5.0, help="guidance scale")
    add("--batch-size", type=int, default=8, help="pictures at a time")
    add("--seed", type=int, default=42, help="seed of noise and choice")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--out", type=Path, default=ROOT / "outputs" / "demo_quality", help="folder for JSON and sheets")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    for path in (options.config, options.ckpt, options.clip):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    benchmark = Benchmark(options)
    measures = benchmark.run()
    result = {
        "model": {"config": options.config.name, "weights": options.ckpt.name, "pixels": benchmark.size},
        "settings": {name: getattr(options, name) for name in ("sampler", "steps", "scale", "seed", "limit")},
        "data": {"concepts": len(benchmark.all.labels), "styles": benchmark.all.styles,
                 "training_cells": len(benchmark.train), "held_out_cells": len(benchmark.held_out)},
        "seconds_per_picture": round(benchmark.seconds_per_picture, 3),
        "measures": measures,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    (options.out / "quality.json").write_text(text + "\n", encoding="utf-8")
    for name, samples in benchmark.samples.items():
        sample_sheet(samples[:64]).save(options.out / f"{name}.png")
    for line in summary(measures):
        print(line)
    print(f"wrote {options.out}/quality.json and {', '.join(f'{n}.png' for n in benchmark.samples)}")
    return 0


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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LdmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
