"""Small pictures of latents by a linear map, a pixel for each latent: no network is asked.

    rgb = latents . factors + bias      (c) . (c, 3) + (3), in -1..1

A linear map is a good guess because the latents of these autoencoders are themselves a small, noisy picture.
The factors of SD 1.x and 2.x, which share their latents, are those that ComfyUI publishes
(comfy/latent_formats.py, SD15). Other models keep theirs in a JSON file beside their YAML, made by `fitted`
(scripts/data/fit_preview.py).
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
    """The map: c rows of 3 factors, and 3 that are added."""

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def pictures(self, latents: Tensor) -> np.ndarray:
        """Return uint8 pictures (b, h, w, 3) of latents (b, c, h, w)."""
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


def guessed(channels: int) -> LatentToRGB:
    """Return a map for latents of an unknown autoencoder: shapes without their colours.

    The mean of all channels as grey; latents are about -1..1 with tails to 4.
    """
    return LatentToRGB(((0.5 / channels**0.5,) * 3,) * channels)


def fitted(latents: Tensor, images: Tensor) -> tuple[LatentToRGB, float]:
    """Return the map of least squares, and the share of the pictures' variance that it explains.

    Args:
        latents: (n, c, h, w).
        images: (n, 3, H, W) in -1..1, of the same pictures; each latent gets the mean of its pixels.
    """
    small = torch.nn.functional.interpolate(images.double(), latents.shape[-2:], mode="area")
    x = latents.double().movedim(1, -1).flatten(0, -2)  # (n h w, c)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    y = small.movedim(1, -1).flatten(0, -2)  # (n h w, 3)
    solution = torch.linalg.lstsq(x, y).solution  # (c + 1, 3)
    explained = 1 - float((y - x @ solution).var() / y.var())
    *factors, bias = [tuple(round(value, 4) for value in row) for row in solution.tolist()]
    return LatentToRGB(tuple(factors), bias), explained


def load_map(path: str | Path) -> LatentToRGB:
    """Read a map: {"factors": [[r, g, b], ...], "bias": [r, g, b]}. Raises: InputError."""
    try:
        content = json.loads(Path(path).read_text())
        factors = tuple(tuple(map(float, row)) for row in content["factors"])
        bias = tuple(map(float, content["bias"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no map from latents to colours: {type(error).__name__}: {error}"
        ) from error
    if not factors or {len(row) for row in (*factors, bias)} != {3}:
        raise InputError(f"{path}: expected rows of three numbers, one for each latent channel, and a bias")
    return LatentToRGB(factors, bias)
