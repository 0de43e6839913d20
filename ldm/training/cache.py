"""Latents and texts encoded once, so that diffusion training runs the UNet alone.

For each image the posterior's mean and standard deviation are kept in float16, so that a fresh sample can
still be drawn every time (2 * 4 * 16 * 16 * 2 bytes = 4 KB for an image of 128 px). Texts are kept once
each, in float16. The cache lies in the run folder: a resumed run reads back the same bits instead of encoding
again.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.errors import TrainingError
from ldm.files.atomic import atomic_write
from ldm.training.seeding import generator
from ldm.wording import counted

log = logging.getLogger(__name__)

BATCH = 32


@dataclass
class LatentCache:
    """A data set of moments: `batch` gives (mean, std) as (b, 2c, h, w), captions, and any extra inputs."""

    moments: Tensor  # (n, 2c, h, w) float16
    captions: list[str]  # of each image
    contexts: Tensor | None  # (m, tokens, width) float16 of `texts`; None if they would not fit
    texts: list[str]  # the distinct captions
    extra_inputs: Tensor | None = None  # (n, ...) float16 or uint8, what is shown with each image

    def __post_init__(self) -> None:
        self.rows = {text: row for row, text in enumerate(self.texts)}

    def __len__(self) -> int:
        return len(self.captions)

    def batch(self, random: torch.Generator, batch_size: int) -> tuple[Any, ...]:
        """Return moments (b, 2c, h, w), float32, captions, extra inputs; drawn with replacement."""
        rows = torch.randint(len(self), (batch_size,), generator=random)
        drawn = self.moments[rows].float(), [self.captions[row] for row in rows.tolist()]
        if self.extra_inputs is None:
            return drawn
        return (*drawn, {"extra_input": self.extra_inputs[rows].float()})

    def context_of(self, captions: list[str]) -> Tensor:
        """Return the encoded captions (b, tokens, width), float16."""
        return self.contexts[[self.rows[caption] for caption in captions]]

    def latent_std(self) -> float:
        """Return the standard deviation of samples of the unscaled latents."""
        mean, std = self.moments.float().chunk(2, dim=1)
        return float((mean.var() + std.square().mean()).sqrt())


def fingerprint(*parts: Any) -> str:
    """Return a hash of plain values and of modules' weights."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.nn.Module):
            for name, value in part.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def build_cache(
    data: Any,
    count: int,
    encode_image: Callable[[Tensor], Tensor],
    encode_text: Callable[[list[str]], Tensor] | None,
    text_limit_mb: int,
    seed: int,
    encode_extra: Callable[[Tensor, dict[str, Tensor]], Tensor] | None = None,
    hurried: Callable[[], bool] = lambda: False,
) -> LatentCache:
    """Encode `count` images and their distinct captions, the empty one included.

    Args:
        encode_image: images -> (b, 2c, h, w) mean and standard deviation.
        encode_text: captions -> (b, tokens, width); None leaves texts out.
        encode_extra: images and the data's extra inputs -> (b, ...); None: the model takes none.
        hurried: tells that training has to end.

    Raises:
        TrainingError: the time limit ends here.
    """
    started = time.monotonic()
    moments, captions, extra_inputs = [], [], []
    for index in range(0, count, BATCH):
        if hurried():
            raise TrainingError(
                f"the time limit ends while images are encoded ({index} of {count} in "
                f"{time.monotonic() - started:.0f} s); allow more time, or a smaller diffusion.cache_latents"
            )
        random = generator(seed, "cache", index)
        images, batch_captions, *given = data.batch(random, min(BATCH, count - index))
        moments.append(encode_image(images).to("cpu", torch.float16).contiguous())
        captions += batch_captions
        if encode_extra is not None:
            extra = encode_extra(images, given[0] if given else {})
            kept = torch.float16 if extra.is_floating_point() else extra.dtype
            extra_inputs.append(extra.to("cpu", kept).contiguous())
    texts = sorted({"", *captions})
    contexts = None
    if encode_text is not None:
        first = encode_text([""])
        megabytes = len(texts) * first[0].numel() * 2 / 2**20
        if megabytes <= text_limit_mb:
            parts = [
                encode_text(texts[i : i + BATCH]).to("cpu", torch.float16)
                for i in range(0, len(texts), BATCH)
            ]
            contexts = torch.cat(parts)
        else:
            log.info(
                "%s need %.0f MB, above cache_text_mb: encoded in every step",
                counted(len(texts), "caption"), megabytes,
            )
    both = f"{counted(count, 'image')} and {counted(len(texts), 'caption')}"
    log.info("encoded %s in %.0f s", both, time.monotonic() - started)
    extra = torch.cat(extra_inputs) if extra_inputs else None
    return LatentCache(torch.cat(moments), captions, contexts, texts, extra)


def save_cache(cache: LatentCache, path: Path, mark: str) -> None:
    """Write the cache; `mark` says from what it was made."""
    words = json.dumps([cache.captions, cache.texts]).encode()
    tensors = {"moments": cache.moments, "words": torch.frombuffer(bytearray(words), dtype=torch.uint8)}
    tensors |= {k: x for k in ("contexts", "extra_inputs") if (x := getattr(cache, k)) is not None}
    atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata={"mark": mark}))


def load_cache(path: Path, mark: str) -> LatentCache | None:
    """Read the cache, or return None when there is none made from the same things."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("mark") != mark:
            log.info("%s was made from other data or weights: encoding again", path)
            return None
        captions, texts = json.loads(bytes(file.get_tensor("words").numpy()))
        names = set(file.keys())
        contexts, extra = (file.get_tensor(n) if n in names else None for n in ("contexts", "extra_inputs"))
        return LatentCache(file.get_tensor("moments"), captions, contexts, texts, extra)
