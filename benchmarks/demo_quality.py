"""Measure the quality of the demo model: figures with their sample sizes, and a sheet of samples.

    python benchmarks/demo_quality.py [--limit 100]
    python benchmarks/demo_quality.py --task inpaint        see benchmarks/task_quality.py

    autoencoder    PSNR of decode(encode(x)), on training and on held-out images
    background     share of images whose corners have the requested colour, out of ten colours and white
    retrieval      share of images whose concept is the first, or among the first five, of all labels, ordered
                   by similarity according to the project's own CLIP (R@1, R@5)
    order          share of scenes "X next to Y" with X left and Y right, by that CLIP on the two halves
    nearest        root mean square difference to the nearest training image, in 0..1, at 64 pixels

The CLIP is small and makes errors, so its figures are also given for real images. Proportions have their 95 %
interval (Wilson 1927). "held_out" are cells (concept, style) that were not used in training.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ldm  # noqa: E402
from benchmarks import task_quality  # noqa: E402
from benchmarks.quality import (  # noqa: E402
    Asked,
    ImageClip,
    average,
    clip_weights,
    corner_colours,
    halves,
    in_order,
    nearest_distance,
    pair_requests,
    proportion,
    psnr,
    real_images,
    retrieval,
    sample_sheet,
    single_requests,
    summary,
)
from demo.scenes import SINGLE_SCALES, EmojiScenes  # noqa: E402
from ldm.devices import resolve_device  # noqa: E402
from ldm.errors import InputError, LdmError  # noqa: E402
from ldm.requests import Txt2Img  # noqa: E402

COPY_DISTANCE = 0.05  # below it an image counts as a copy: what an autoencoder of 26 dB does to a real one


class Benchmark:
    """Images and figures of one model."""

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
        self.clip = ImageClip(weights, options.clip_arch, options.clip_bpe)
        self.seconds_per_image = 0.0
        self.samples: dict[str, list[tuple[str, Tensor]]] = {}

    def run(self) -> dict[str, Any]:
        measures: dict[str, Any] = {"autoencoder_psnr_db": self.autoencoder()}
        for name, scenes in (("known", self.train), ("held_out", self.held_out)):
            asked = single_requests(scenes, self.options.limit, self._generator(name))
            images = self.generate(name, asked)
            measures[name] = self.judge(asked, images)
            print(f"{name}: {len(asked)} images measured", flush=True)
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
            real = real_images(asked, scenes)
            found[name] = average(psnr(self._autoencoded(real), real))
        return found

    def generate(self, name: str, asked: list[Asked]) -> Tensor:
        """Make the images asked for, (n, 3, h, w) in -1..1."""
        options = self.options
        prompts = [one.prompt(self.all) for one in asked]
        began = time.perf_counter()
        request = Txt2Img(
            prompts=prompts, seed=options.seed, n_samples=options.batch_size, n_iter=1,
            sampler=options.sampler, steps=options.steps, scale=options.scale,
        )  # fmt: skip
        parts = [batch.images.clamp(-1, 1) for batch in ldm.generate(self.model, request)]
        self.seconds_per_image = (time.perf_counter() - began) / max(1, len(prompts))
        images = torch.cat(parts) if parts else torch.empty(0, 3, self.size, self.size)
        self.samples[name] = list(zip(prompts, images, strict=True))
        return images

    def judge(self, asked: list[Asked], images: Tensor) -> dict[str, Any]:
        """Measure ground, retrieval and distance, for generated images and for the real ones asked for."""
        if not asked:
            return {"n": 0}
        real = real_images(asked, self.all)
        colours = [one.colour for one in asked]
        right = [found == wanted for found, wanted in zip(corner_colours(images), colours, strict=True)]
        named = [hit for hit, wanted in zip(right, colours, strict=True) if wanted is not None]
        found = {"background": proportion(right), "background_named": proportion(named)}
        for name, judged in (("retrieval", images), ("retrieval_real_images", real)):
            found[name] = retrieval(self.clip, self.all, asked, judged)
        found["nearest"] = self.nearest(asked, images)
        found["nearest_autoencoded"] = self.nearest(asked, self._autoencoded(real))
        return found

    def nearest(self, asked: list[Asked], images: Tensor) -> dict[str, Any]:
        """Compare with all training images: on the ground asked for, centred, each size, both ways."""
        distances, same = torch.empty(len(asked)), torch.zeros(len(asked), dtype=torch.bool)
        for colour in {one.colour for one in asked}:
            rows = [i for i, one in enumerate(asked) if one.colour == colour]
            shown = [
                (cell, _small(self.train.render(cell["label"], cell["style"], colour, flip, scale=scale)[0]))
                for cell in self.train.cells
                for scale in SINGLE_SCALES
                for flip in ((False, True) if cell["mirrorable"] else (False,))
            ]
            references = torch.stack([image for _, image in shown])
            distances[rows], which = nearest_distance(_small(images[rows]), references)
            for row, index in zip(rows, which.tolist(), strict=True):
                same[row] = shown[index][0]["label"] == asked[row].label
        return {
            "rms_distance": average(distances),
            "copies": {**proportion(distances < COPY_DISTANCE), "below": COPY_DISTANCE},
            "nearest_shows_the_concept": proportion(same),
        }

    def judge_order(self, asked: list[Asked], images: Tensor) -> dict[str, Any]:
        """Measure whether X is left and Y right, for generated images and for real ones."""
        first = self.clip.texts([Asked(one.label, one.style, None).prompt(self.all) for one in asked])
        second = self.clip.texts([Asked(one.second, one.style, None).prompt(self.all) for one in asked])
        found = {}
        for name, judged in (("generated", images), ("real_images", real_images(asked, self.all))):
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


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    demo = ROOT / "configs" / "demo"
    add = parser.add_argument
    add("--task", choices=[*task_quality.SCALES], help="measure the model of this task; default: the base")
    add("--config", type=Path, help="the model's YAML; default: the shipped one")
    add("--ckpt", type=Path, help="the model's weights; default: the shipped ones")
    add("--data", type=Path, help="folder of make_emoji.py; default: data/emoji/128, 256 to upscale")
    add("--styles", default="", help="comma-separated styles that the model was trained on; default: all")
    add("--concepts", type=Path, help="file of the labels that it was trained on; default: all")
    add("--clip", type=Path, default=demo / "emoji_clip_image.safetensors", help="the CLIP that judges")
    add("--clip-arch", type=Path, default=demo / "emoji_clip.json", help="its architecture")
    add("--clip-bpe", type=Path, default=demo / "emoji_bpe.txt.gz", help="its merges")
    add("--limit", type=int, default=0, help="images per measure; 0: every cell once")
    add("--sampler", default="dpm", help="name of a sampler")
    add("--steps", type=int, default=25, help="sampler steps")
    add("--scale", type=float, help="guidance scale; default: 5, upscale 1, unclip 3, the other tasks 4")
    add("--noise-level", type=int, help="of the small image, or of the embedding")
    add("--batch-size", type=int, default=8, help="images generated at a time")
    add("--seed", type=int, default=42, help="seed of noise and choice")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--out", type=Path, default=ROOT / "outputs" / "demo_quality", help="folder for JSON and sheets")
    options = parser.parse_args(arguments)
    name = f"emoji_{options.task}" if options.task else "emoji"
    options.config = options.config or demo / f"{name}.yaml"
    options.ckpt = options.ckpt or demo / f"{name}.safetensors"
    options.data = options.data or ROOT / "data" / "emoji" / ("256" if options.task == "upscale" else "128")
    if options.scale is None:
        options.scale = task_quality.SCALES.get(options.task, 5.0)
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    for path in (options.config, options.ckpt, options.clip):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
    began = time.perf_counter()
    benchmark = task_quality.TaskBenchmark(options) if options.task else Benchmark(options)
    measures = benchmark.run()
    names = ("task", "sampler", "steps", "scale", "noise_level", "seed", "limit")
    result = {
        "model": {"config": options.config.name, "weights": options.ckpt.name, "pixels": benchmark.size},
        "settings": {name: getattr(options, name) for name in names},
        "seconds_per_image": round(benchmark.seconds_per_image, 3),
        "seconds": round(time.perf_counter() - began, 1),
        "measures": measures,
    }
    if isinstance(benchmark, Benchmark):
        result["data"] = {
            "concepts": len(benchmark.all.labels), "styles": benchmark.all.styles,
            "training_cells": len(benchmark.train), "held_out_cells": len(benchmark.held_out),
        }  # fmt: skip
        sheets = {name: sample_sheet(samples[:64]) for name, samples in benchmark.samples.items()}
    else:
        sheets = {options.task: sample_sheet(benchmark.sheet, columns=benchmark.columns)}
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1)
    name = f"quality_{options.task}.json" if options.task else "quality.json"
    (options.out / name).write_text(text + "\n", encoding="utf-8")
    for sheet_name, sheet in sheets.items():
        sheet.save(options.out / f"{sheet_name}.png")
    for line in summary(measures):
        print(line)
    print(f"wrote {options.out}/{name} and {', '.join(f'{n}.png' for n in sheets)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LdmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
