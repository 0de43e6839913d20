"""Low-resolution previews of latents by a linear map, one pixel per latent, without running the decoder.

    rgb = latents . factors + bias      (c) . (c, 3) + (3), in -1..1

A linear map works well because the latents of these autoencoders look like a small, noisy image. SD 1.x and
2.x share their latents; their factors are those that ComfyUI publishes (comfy/latent_formats.py, SD15). Other
models have theirs in a JSON file next to their YAML, as demo/fit_preview.py makes it.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging.colour import to_uint8

SD_SCALE_FACTOR = 0.18215


@dataclass(frozen=True)
class LatentToRGB:
    """A linear map from c latent channels to RGB: c rows of 3 factors, and a bias."""

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def images(self, latents: Tensor) -> np.ndarray:
        """Return uint8 images (b, h, w, 3) of latents (b, c, h, w)."""
        latents = latents.float().cpu()
        factors, bias = torch.tensor(self.factors), torch.tensor(self.bias)
        rgb = torch.einsum("bchw,cr->brhw", latents, factors) + bias[:, None, None]  # (b, 3, h, w)
        return to_uint8(rgb.nan_to_num())


SD = LatentToRGB(
    (
        (0.3512, 0.2297, 0.3227),
        (0.3250, 0.4974, 0.2350),
        (-0.2829, 0.1762, 0.2721),
        (-0.2120, -0.2616, -0.7177),
    )
)


def grey_map(channels: int) -> LatentToRGB:
    """Return a map for the latents of an unknown autoencoder, which shows shapes in grey.

    It averages all channels; latents are about -1..1 with tails to 4.
    """
    return LatentToRGB(((0.5 / channels**0.5,) * 3,) * channels)


def load_map(path: str | Path) -> LatentToRGB:
    """Read a map from JSON: {"factors": [[r, g, b], ...], "bias": [r, g, b]}. Raises: InputError."""
    try:
        content = json.loads(Path(path).read_text())
        factors = tuple(tuple(map(float, row)) for row in content["factors"])
        bias = tuple(map(float, content["bias"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a map from latents to colours: {type(error).__name__}: {error}"
        ) from error
    if not factors or {len(row) for row in (*factors, bias)} != {3}:
        raise InputError(
            f"{path}: expected one row of three numbers for each latent channel, and a bias of three"
        )
    return LatentToRGB(factors, bias)
