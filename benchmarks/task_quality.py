"""Measure the quality of the conditional demo models, each on held-out images with its own task.

    inpaint    A box over the middle is repainted with another concept. Measured is the rank of that concept
               among all labels for the box (R@1, R@5), compared with the original image (without the
               concept), a random image (chance) and a real image of the concept (the judge's own error).
    depth      Correlation of the inflated foreground of the result with the requested map, compared with the
               map of another image; for the map's own prompt, and for the prompt of another scene.
    upscale    PSNR and perceptual distance to the original, compared with the result without back-projection
               (raw), bicubic, Lanczos, and Lanczos with back-projection (faithful_lanczos), which shows what
               the model adds; and with the autoencoder's reconstruction of the original.
    unclip     Share of variations whose nearest image among all sources is their own (R@1, R@5), and of those
               that keep its background, compared with a variation of another image (chance). The model is
               conditioned by the image tower of the judge.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import ldm
from benchmarks.quality import (
    Asked,
    ImageClip,
    average,
    clip_weights,
    corner_colours,
    proportion,
    psnr,
    real_images,
    recall,
    retrieval,
    single_requests,
)
from demo.extra_inputs import shrunk
from demo.perceptual import PerceptualDistance
from demo.scenes import EmojiScenes
from ldm.data.extra_inputs import inflated
from ldm.devices import resolve_device
from ldm.imaging.back_projection import back_project
from ldm.imaging.colour import from_uint8, to_uint8
from ldm.requests import Depth2Img, Inpaint, Request, Unclip, Upscale

BOX = 0.75  # of the image's side: the largest that training masked, short of the whole
PROMPTS = 4  # an image that is inpainted
COLUMNS = {"inpaint": 2 * (1 + PROMPTS), "depth": 8, "upscale": 7, "unclip": 8}  # of the sheet
SCALES = {"inpaint": 4.0, "depth": 4.0, "upscale": 1.0, "unclip": 3.0}  # guidance, where none is asked for

Sheet = list[tuple[str, Tensor]]


# --- measures: images are (n, 3, h, w) in -1..1 -----------------------------------------------------------


def regions(images: Tensor, mask: Tensor) -> Tensor:
    """Cut the rectangle around the mask (h, w) out of the images; all of them for no mask."""
    rows, columns = (mask.amax(dim=dim).nonzero()[:, 0] for dim in (1, 0))
    if len(rows) == 0:
        return images
    return images[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


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
    """Correlate the depth asked for, (n, 1, h, w), with that of the image's own shape."""
    return correlation(seen_depth(images), depth)


def enlarged(small: Tensor, factor: int, kernel: str) -> Tensor:
    """Enlarge images (n, 3, h, w) in -1..1 by Pillow's "bicubic" or "lanczos", in 8 bits."""
    levels = ((small.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    size = (small.shape[-1] * factor, small.shape[-2] * factor)
    resampling = Image.Resampling[kernel.upper()]
    large = [np.asarray(Image.fromarray(one).resize(size, resampling)) for one in levels]
    return torch.from_numpy(np.stack(large)).permute(0, 3, 1, 2).float() / 127.5 - 1


def variation_retrieval(clip: Any, variations: Tensor, sources: Tensor, k: int = 1) -> Tensor:
    """Whether each variation finds its own source among all sources, by the CLIP."""
    similarity = clip.images(variations) @ clip.images(sources).T
    return recall(similarity, torch.arange(len(sources)), k)


# --- the tasks ----------------------------------------------------------------------------------------------


class TaskBenchmark:
    """Images and figures of one conditional model.

    Attributes:
        sheet: what was asked and what came, to look at.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model = ldm.load_model(
            options.config, options.ckpt, device=resolve_device(options.device), dtype="float32"
        )
        self.size = self.model.image_size * self.model.downsampling_factor
        self.clip = ImageClip(clip_weights(options.clip, options.ckpt), options.clip_arch, options.clip_bpe)
        self.how = {"sampler": options.sampler, "steps": options.steps, "scale": options.scale}
        self.random = torch.Generator().manual_seed(options.seed)
        self.seconds_per_image = 0.0
        self.sheet: Sheet = []
        self.columns = COLUMNS[options.task]

    def scenes(self, split: str, extra_input: str | None = None) -> EmojiScenes:
        concepts = self.options.concepts or None
        styles = self.options.styles.split(",") if self.options.styles else None
        path = self.options.data
        options = {"styles": styles, "concepts": concepts, "extra_input": extra_input}
        return EmojiScenes(path, split, size=self.size, **options)

    def run(self) -> dict[str, Any]:
        return {task: getattr(self, task)() for task in [self.options.task]}

    def inpaint(self) -> dict[str, Any]:
        held_out, every = self.scenes("held_out"), self.scenes("all")
        count = -(-(self.options.limit or 40) // PROMPTS)
        side, room = round(BOX * self.size), round((1 - BOX) / 2 * self.size)
        mask = torch.zeros(self.size, self.size)
        mask[room : room + side, room : room + side] = 1
        sources, asked, made = [], [], []
        for index, source in enumerate(self._cycled(held_out, count)):
            image = real_images([source], held_out)
            wanted = [
                Asked(label, source.style, source.colour)
                for label in self._other_labels(every, source, PROMPTS)
            ]
            eta = {"eta": 0.0} if self.how["sampler"] == "ddim" else {}
            request = Inpaint(
                init_img=to_uint8(image)[0], mask=mask.numpy(),
                prompts=[one.prompt(every) for one in wanted], n_samples=PROMPTS,
                seed=self.options.seed + index, **self.how, **eta,
            )  # fmt: skip
            made.append(self._made(request))
            asked += wanted
            sources.append(image.expand(len(wanted), -1, -1, -1))
            self.sheet += [(source.prompt(every), image[0])]
            self.sheet += [(one.prompt(every), x) for one, x in zip(wanted, made[-1], strict=True)]
        images, originals = torch.cat(made), torch.cat(sources)
        order = torch.randperm(len(asked), generator=self.random)
        judged = {
            "painted": images,
            "untouched": originals,
            "random_real_image": real_images([asked[i] for i in order], every),
            "real_image": real_images(asked, every),
        }
        return {name: retrieval(self.clip, every, asked, regions(x, mask)) for name, x in judged.items()}

    def depth(self) -> dict[str, Any]:
        count = self.options.limit or 40
        real, captions, given = self.scenes("held_out", "depth").batch(self.random, count)
        _, others, _ = self.scenes("train", "depth").batch(self.random, count)
        depth = given["depth"]
        found: dict[str, Any] = {"real_images": average(depth_agreement(real, depth))}
        shuffled = depth.roll(1, 0)
        for name, prompts in (("own_prompt", captions), ("another_prompt", others)):
            parts = []
            for index, (prompt, one) in enumerate(zip(prompts, depth, strict=True)):
                request = Depth2Img(
                    depth=one[0].numpy(), prompts=[prompt], seed=self.options.seed + index,
                    height=self.size, width=self.size, **self.how,
                )  # fmt: skip
                parts.append(self._made(request))
                self.sheet += [("depth", one.expand(3, -1, -1) * 2 - 1), (prompt, parts[-1][0])]
            images = torch.cat(parts)
            found[name] = {
                "depth_asked": average(depth_agreement(images, depth)),
                "shuffled_depth": average(depth_agreement(images, shuffled)),
            }
        return found

    def upscale(self) -> dict[str, Any]:
        held_out = self.scenes("held_out")
        asked = self._cycled(held_out, self.options.limit or len(held_out))
        originals = real_images(asked, held_out)
        small = in_8_bits(shrunk(originals))
        parts = []
        for index, one in enumerate(asked):
            request = Upscale(
                init_img=to_uint8(small[index : index + 1])[0], prompts=[one.prompt(held_out)],
                seed=self.options.seed + index, noise_level=self.options.noise_level, faithful="off",
                **self.how,
            )  # fmt: skip
            parts.append(self._made(request))
        raw, lanczos = torch.cat(parts), enlarged(small, 4, "lanczos")
        made = {
            "model": in_8_bits(back_project(raw, small)),
            "raw": raw,
            "bicubic": enlarged(small, 4, "bicubic"),
            "lanczos": lanczos,
            "faithful_lanczos": in_8_bits(back_project(lanczos, small)),
            "autoencoder": self._autoencoded(originals),
        }
        for i, one in enumerate(asked):
            self.sheet += [(f"{name}: {one.prompt(held_out)}", x[i]) for name, x in made.items()]
            self.sheet.append(("original", originals[i]))
        found = {"psnr_db": compared({name: psnr(x, originals) for name, x in made.items()}, higher=True)}
        distance = PerceptualDistance.load()
        if distance is not None:
            values = {name: distances(distance, x, originals) for name, x in made.items()}
            found["perceptual_distance"] = compared(values, higher=False)
        return found

    def unclip(self) -> dict[str, Any]:
        every = self.scenes("all")
        held_out = {(cell["label"], cell["style"]) for cell in self.scenes("held_out").cells}
        asked = single_requests(every, self.options.limit, self.random)
        sources = real_images(asked, every)
        parts = []
        for index, source in enumerate(to_uint8(sources)):
            request = Unclip(
                init_img=source, prompts=[""], seed=self.options.seed + index,
                noise_level=self.options.noise_level or 0, **self.how,
            )  # fmt: skip
            parts.append(self._made(request))
            self.sheet += [("source", sources[index]), ("variation", parts[-1][0])]
        images = torch.cat(parts)
        unseen = torch.tensor([(one.label, one.style) in held_out for one in asked])
        found: dict[str, Any] = {"sources": len(asked)}
        for k in (1, 5):
            hits = variation_retrieval(self.clip, images, sources, k)
            found[f"recall_at_{k}"] = proportion(hits)
            found[f"recall_at_{k}_held_out"] = proportion(hits[unseen])
            found[f"recall_at_{k}_of_another"] = proportion(
                variation_retrieval(self.clip, images.roll(1, 0), sources, k)
            )
        colours = [one.colour for one in asked]
        same = [found == wanted for found, wanted in zip(corner_colours(images), colours, strict=True)]
        found["ground_kept"] = proportion(same)
        return found

    def _made(self, request: Request) -> Tensor:
        """Return the final images of a request, and note the time."""
        began = time.perf_counter()
        batches = ldm.generate(self.model, request)
        made = np.stack([image for batch in batches for image in batch.to_uint8()])
        seconds = (time.perf_counter() - began) / len(made)
        self.seconds_per_image = seconds if not self.seconds_per_image else (
            0.9 * self.seconds_per_image + 0.1 * seconds
        )
        print(".", end="", flush=True)
        return from_uint8(made)

    def _cycled(self, scenes: EmojiScenes, count: int) -> list[Asked]:
        """Ask for `count` cells, every one as often as the others, on grounds in turn."""
        asked: list[Asked] = []
        while len(asked) < count:
            asked += single_requests(scenes, 0, self.random)
        return asked[:count]

    def _other_labels(self, scenes: EmojiScenes, source: Asked, count: int) -> list[str]:
        labels = [cell["label"] for cell in scenes.cells if cell["style"] == source.style]
        labels.remove(source.label)
        order = torch.randperm(len(labels), generator=self.random).tolist()
        return [labels[i] for i in order[:count]]

    @torch.no_grad()
    def _autoencoded(self, images: Tensor) -> Tensor:
        parts = []
        for part in images.split(self.options.batch_size):
            posterior = self.model.encode_first_stage(part.to(self.model.device))
            latents = self.model.get_first_stage_encoding(posterior.mode())
            parts.append(self.model.decode_first_stage(latents).float().cpu().clamp(-1, 1))
        return torch.cat(parts)


def in_8_bits(images: Tensor) -> Tensor:
    """Return images as they are when saved."""
    return from_uint8(to_uint8(images))


def compared(values: dict[str, Tensor], higher: bool) -> dict[str, Any]:
    """Return the average of each, and how often the model is better than each interpolation."""
    found: dict[str, Any] = {name: average(x) for name, x in values.items()}
    for other in ("bicubic", "lanczos", "faithful_lanczos"):
        is_better = values["model"] > values[other] if higher else values["model"] < values[other]
        found[f"beats_{other}"] = proportion(is_better)
    return found


@torch.no_grad()
def distances(distance: Any, images: Tensor, originals: Tensor) -> Tensor:
    """Return the perceptual distance of each pair."""
    pairs = zip(images.split(4), originals.split(4), strict=True)
    return torch.cat([distance(x, y) for x, y in pairs])
