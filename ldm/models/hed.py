"""Holistically-nested edge detection (arXiv 1504.06375): VGG-16 with an edge map after each of its blocks.

    side_k = 1x1 convolution of block k, enlarged to the image's size
    edges = sigmoid(mean of side_k)         ControlNetHED.pth
    edges = sigmoid(w . side + b)           network-bsds500.pth, with w and b learnt

Parameter names are those of ControlNetHED.pth; `renamed` reads the names of the older file.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (122.67891434, 116.66876762, 104.00698793)       # RGB levels that the older network subtracts
BLOCKS = ("One", "Two", "Three", "Four", "Five")
CONV = re.compile(r"(?:net|module)Vgg(\w+)\.(\d+)\.(weight|bias)")
SIDE = re.compile(r"(?:net|module)Score(\w+)\.(weight|bias)")
FUSED = re.compile(r"(?:net|module)Combine\.0\.(weight|bias)")


class Block(nn.Module):
    """3x3 convolutions with relu; returns the features and their edge map."""

    def __init__(self, in_channels: int, channels: int, depth: int) -> None:
        super().__init__()
        inputs = (in_channels, *[channels] * (depth - 1))
        self.convs = nn.ModuleList(nn.Conv2d(width, channels, 3, padding=1) for width in inputs)
        self.projection = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        return x, self.projection(x)


class HED(nn.Module):
    """Images (b, 3, h, w), RGB in 0..255 -> edges (b, 1, h, w) in 0..1."""

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512, 512),     # of the blocks
        depths: Sequence[int] = (2, 2, 3, 3, 3),                # convolutions of each
        weighs_sides: bool = False,                             # or takes the mean of the edge maps
    ) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        inputs = (3, *channels[:-1])
        self.blocks = [f"block{i}" for i in range(1, len(channels) + 1)]
        for name, *sizes in zip(self.blocks, inputs, channels, depths, strict=True):
            self.add_module(name, Block(*sizes))
        self.combine = nn.Conv2d(len(channels), 1, 1) if weighs_sides else None

    def forward(self, images: Tensor) -> Tensor:
        x, sides = images - self.norm, []
        for i, name in enumerate(self.blocks):
            x, side = self.get_submodule(name)(F.max_pool2d(x, 2) if i else x)
            sides.append(F.interpolate(side, images.shape[-2:], mode="bilinear"))
        joined = torch.cat(sides, dim=1)
        logits = joined.mean(dim=1, keepdim=True) if self.combine is None else self.combine(joined)
        return logits.sigmoid()


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names here: those of network-bsds500.pth renamed, others as they are.

    That network sees BGR images less their mean: its first kernels are turned to RGB.
    """
    found = {}
    for name, x in tensors.items():
        if match := CONV.fullmatch(name):
            number, kind = BLOCKS.index(match[1]) + 1, match[3]
            found[f"block{number}.convs.{int(match[2]) // 2}.{kind}"] = x   # every second layer is a relu
        elif match := SIDE.fullmatch(name):
            found[f"block{BLOCKS.index(match[1]) + 1}.projection.{match[2]}"] = x
        elif match := FUSED.fullmatch(name):
            found[f"combine.{match[1]}"] = x
        else:
            found[name] = x
    return as_rgb_network(found) if "combine.weight" in found else found


def as_rgb_network(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network of BGR images less `MEAN` as those of one of RGB images."""
    first = "block1.convs.0.weight"
    turned = {first: tensors[first].flip(1)} if first in tensors else {}
    return {"norm": torch.tensor(MEAN).reshape(1, 3, 1, 1)} | tensors | turned
