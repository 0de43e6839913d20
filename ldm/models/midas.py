"""Monocular depth estimation: MiDaS's DPT-hybrid (arXiv 2103.13413, section 3; training: arXiv 1907.01341).

    image -> ResNet (strides 4, 8, 16) -> tokens of stride 16 -> ViT
    taps: ResNet stages 1 and 2, ViT blocks 9 and 12  ->  maps of strides 4, 8, 16, 32
    fused from coarse to fine -> inverse depth, larger = nearer, >= 0

The ResNet is BiT's (arXiv 1912.11370): weight-standardised convolutions (arXiv 1903.10520),
W' = (W - mean W) / sqrt(var W + 1e-8) for each output channel, with "same" padding, which for stride 2 adds
the odd row at the bottom and the odd column at the right. Attribute names are the LDM key names.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import ConfigError, InputError
from ldm.models.attention import merge_heads, split_heads
from ldm.models.text_clip import MLP

SIDE = 384          # pixels; the network was trained on square images of this side
STRIDE = 32         # of the coarsest map; the sides of the input are multiples of it
MODEL_TYPES = ("dpt_hybrid",)


def same_padding(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad (b, c, h, w) with zeros so that a convolution returns ceil(side / stride); odd padding is last."""
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
    (top, bottom), (left, right) = ((n // 2, n - n // 2) for n in total)
    return F.pad(x, (left, right, top, bottom)) if any(total) else x


class StandardisedConv2d(nn.Conv2d):
    """Convolution whose kernels have mean 0 and variance 1, with "same" padding and no bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight.float(), dim=(1, 2, 3), correction=0, keepdim=True)
        weight = ((self.weight.float() - mean) * torch.rsqrt(variance + 1e-8)).to(x.dtype)
        return F.conv2d(same_padding(x, self.kernel_size[0], self.stride[0]), weight, stride=self.stride)


class ConvNorm(nn.Module):
    """A convolution and a group norm; as a shortcut it changes channels or stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = StandardisedConv2d(in_channels, out_channels, kernel, stride)
        self.norm = nn.GroupNorm(groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Stem(ConvNorm):
    """7x7 convolution of stride 2, norm, relu and max pooling of stride 2."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(3, channels, 7, 2, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(super().forward(x))                                  # (b, c, h/2, w/2)
        return F.max_pool2d(same_padding(x, 3, 2), 3, stride=2)         # x >= 0: padded zeros have no effect


class Bottleneck(nn.Module):
    """relu(shortcut + 1x1, 3x3 and 1x1 convolutions), with a quarter of the channels inside."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, first: bool) -> None:
        super().__init__()
        inner = out_channels // 4
        self.downsample = ConvNorm(in_channels, out_channels, 1, stride, groups) if first else None
        self.conv1 = StandardisedConv2d(in_channels, inner, 1)
        self.norm1 = nn.GroupNorm(groups, inner)
        self.conv2 = StandardisedConv2d(inner, inner, 3, stride)
        self.norm2 = nn.GroupNorm(groups, inner)
        self.conv3 = StandardisedConv2d(inner, out_channels, 1)
        self.norm3 = nn.GroupNorm(groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(shortcut + self.norm3(self.conv3(x)))


class ResNet(nn.Module):
    """(b, 3, h, w) -> one map per stage, of strides 4, 8, 16."""

    def __init__(self, stem: int, channels: Sequence[int], depths: Sequence[int], groups: int) -> None:
        super().__init__()
        self.stem = Stem(stem, groups)
        self.stages = nn.ModuleList()
        for i, (previous, width, depth) in enumerate(zip((stem, *channels), channels, depths, strict=False)):
            first = Bottleneck(previous, width, 1 if i == 0 else 2, groups, first=True)
            rest = (Bottleneck(width, width, 1, groups, first=False) for _ in range(depth - 1))
            self.stages.append(nn.ModuleDict({"blocks": nn.Sequential(first, *rest)}))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage["blocks"](x)
            maps.append(x)
        return maps


class SelfAttention(nn.Module):
    """Multi-head attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(y, self.num_heads) for y in self.qkv(x).chunk(3, dim=-1))
        return self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class Block(nn.Module):
    """x + attention(LN x), then x + mlp(LN x)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = SelfAttention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, 4 * width, "gelu")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Images -> the maps of the ResNet, and the last of them projected to the width of the tokens."""

    def __init__(self, backbone: ResNet, channels: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.proj = nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        maps = self.backbone(x)
        return maps, self.proj(maps[-1])


class HybridViT(nn.Module):
    """A ViT over the last map of a ResNet (arXiv 2010.11929, "hybrid architecture").

    `norm` and `head` come after the last tap: reference files contain them, but depth does not use them.
    """

    def __init__(
        self, backbone: ResNet, channels: int, width: int, depth: int, num_heads: int, grid: int, classes: int
    ) -> None:
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(nn.init.normal_(torch.empty(1, 1 + grid * grid, width), std=0.02))
        self.patch_embed = PatchEmbed(backbone, channels, width)
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def unused_parameters(self) -> list[str]:
        """Name the parameters that depth does not use, which diffusers folders leave out."""
        return ["head.weight", "head.bias"]

    def positions(self, height: int, width: int) -> Tensor:
        """Return the position embedding (1, 1 + height * width, c), resized if the grid differs."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        token, square = self.pos_embed[:, :1], self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid))
        resized = F.interpolate(square.permute(0, 3, 1, 2), (height, width), mode="bilinear")  # (1, c, h, w)
        return torch.cat((token, resized.flatten(2).transpose(1, 2)), dim=1)

    def forward(self, x: Tensor, taps: Sequence[int]) -> tuple[list[Tensor], list[Tensor], tuple[int, int]]:
        """Return the maps of the ResNet, the tokens (b, 1 + n, c) after the blocks `taps`, and their grid."""
        maps, patches = self.patch_embed(x)                             # (b, c, h/16, w/16)
        size = patches.shape[-2], patches.shape[-1]
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)), dim=1)
        tokens = tokens + self.positions(*size)
        tapped = []
        for i, block in enumerate(self.blocks[: max(taps) + 1]):
            tokens = block(tokens)
            if i in taps:
                tapped.append(tokens)
        return maps, tapped, size


class Readout(nn.Module):
    """Tokens (b, 1 + n, c) -> (b, n, c): the class token is joined to each token (section 3, "project")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: Tensor) -> Tensor:
        class_token, rest = tokens[:, :1], tokens[:, 1:]
        return self.project(torch.cat((rest, class_token.expand_as(rest)), dim=-1))


class Reassemble(nn.Module):
    """Tokens -> a map of stride 16, or 32 with `halve`. The LDM key names number the layers 0, 3 and 4."""

    def __init__(self, width: int, halve: bool) -> None:
        super().__init__()
        self.add_module("0", Readout(width))
        self.add_module("3", nn.Conv2d(width, width, 1))
        self.add_module("4", nn.Conv2d(width, width, 3, stride=2, padding=1) if halve else nn.Identity())

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        readout, project, resize = self.children()
        x = readout(tokens).transpose(1, 2).unflatten(2, size)          # (b, c, h/16, w/16)
        return resize(project(x))


class Pretrained(nn.Module):
    """Images -> four maps of strides 4, 8, 16, 32."""

    def __init__(self, model: HybridViT, width: int, taps: Sequence[int]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        self.model = model
        self.act_postprocess3 = Reassemble(width, halve=False)
        self.act_postprocess4 = Reassemble(width, halve=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, (earlier, later), size = self.model(x, self.taps)
        return [*maps[:2], self.act_postprocess3(earlier, size), self.act_postprocess4(later, size)]


class ResidualConvUnit(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """Add a finer map to the coarser path, refine the sum, and double its sides.

    The coarsest block has no coarser path and does not use its `resConfUnit1`.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = ResidualConvUnit(features)
        self.resConfUnit2 = ResidualConvUnit(features)

    def forward(self, x: Tensor, path: Tensor | None = None) -> Tensor:
        x = self.resConfUnit2(x if path is None else path + self.resConfUnit1(x))
        return self.out_conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))


class Scratch(nn.Module):
    """Four maps -> inverse depth at the size of the image."""

    def __init__(self, channels: Sequence[int], features: int, head_features: int) -> None:
        super().__init__()
        for i, width in enumerate(channels, start=1):
            self.add_module(f"layer{i}_rn", nn.Conv2d(width, features, 3, padding=1, bias=False))
        for i in range(1, len(channels) + 1):
            self.add_module(f"refinenet{i}", Fusion(features))
        self.output_conv = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1),
            nn.UpsamplingBilinear2d(scale_factor=2),                    # this class aligns corners
            nn.Conv2d(features // 2, head_features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(head_features, 1, 1),
            nn.ReLU(),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        path = None
        for i, x in reversed(list(enumerate(maps, start=1))):           # strides 32, 16, 8, 4
            path = self.get_submodule(f"refinenet{i}")(self.get_submodule(f"layer{i}_rn")(x), path)
        return self.output_conv(path)                                   # (b, 1, h, w)


class DPTHybrid(nn.Module):
    """Preprocessed images (b, 3, h, w) with sides that are multiples of 32 -> inverse depth (b, 1, h, w)."""

    def __init__(
        self,
        stem: int = 64,                                     # channels after the first convolution
        channels: Sequence[int] = (256, 512, 1024),         # of the three ResNet stages
        depths: Sequence[int] = (3, 4, 9),                  # blocks of each
        groups: int = 32,                                   # of every group norm
        width: int = 768,                                   # of the tokens
        depth: int = 12,                                    # transformer blocks
        num_heads: int = 12,
        taps: Sequence[int] = (8, 11),                      # blocks whose tokens are used, counted from 0
        grid: int = SIDE // 16,                             # side of the position embedding
        classes: int = 1000,                                # of the head, which is stored but not used
        features: int = 256,                                # channels while fusing
        head_features: int = 32,
    ) -> None:
        super().__init__()
        resnet = ResNet(stem, channels, depths, groups)
        vit = HybridViT(resnet, channels[-1], width, depth, num_heads, grid, classes)
        self.pretrained = Pretrained(vit, width, taps)
        self.scratch = Scratch((*channels[:2], width, width), features, head_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.scratch(self.pretrained(x))


class MiDaSInference(nn.Module):
    """Images -> inverse depth, with frozen weights.

    Args:
        model_type: only "dpt_hybrid", which depth-conditioned checkpoints contain.
        sizes: arguments of `DPTHybrid` that differ from the reference.

    Raises:
        ConfigError: the model type is another one.
    """

    def __init__(self, model_type: str = "dpt_hybrid", sizes: dict | None = None) -> None:
        super().__init__()
        if model_type not in MODEL_TYPES:
            raise ConfigError(f"MiDaSInference: model_type {model_type!r}; expected {', '.join(MODEL_TYPES)}")
        self.model = DPTHybrid(**(sizes or {}))
        self.eval()
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the inverse depth (b, 1, h, w) of the output of `preprocess`, in the dtype of `x`.

        Raises:
            InputError: the sides are not multiples of 32.
        """
        if x.ndim != 4 or x.shape[1] != 3 or any(side % STRIDE or not side for side in x.shape[-2:]):
            raise InputError(
                f"depth network: got an image of shape {tuple(x.shape)}; expected (batch, 3, height, width) "
                f"with sides that are multiples of {STRIDE}"
            )
        return self.model(x.to(self.model.pretrained.model.cls_token.dtype)).to(x.dtype)

    def depth(self, images: Tensor) -> Tensor:
        """Return the inverse depth of images (b, 3, h, w) in -1..1, of any size, at their `network_size`."""
        return self(preprocess(images))


def network_size(height: int, width: int) -> tuple[int, int]:
    """Return the size to which an image is resized for the network: one side about 384, same aspect ratio.

    Of the two scales that bring one side to 384, the one closer to 1 is used. Each side is then rounded to a
    multiple of 32 (half to even), at least 32.
    """
    scale_height, scale_width = SIDE / height, SIDE / width
    scale = scale_width if abs(1 - scale_width) < abs(1 - scale_height) else scale_height
    rounded = [max(round(scale * side / STRIDE), 1) * STRIDE for side in (height, width)]
    return rounded[0], rounded[1]


def preprocess(images: Tensor) -> Tensor:
    """Resize images (b, 3, h, w) in -1..1 to `network_size`, in float32.

    As in OpenCV, it is cubic convolution with a = -0.75 at pixel centres and without antialiasing. The result
    may exceed -1..1 slightly and is not clipped.
    """
    size = network_size(images.shape[-2], images.shape[-1])
    return F.interpolate(images.float(), size, mode="bicubic", align_corners=False)


def load_midas_transform(model_type: str = "dpt_hybrid") -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the reference's preprocessing: {"image": (h, w, 3) in 0..1} to {"image": (3, h', w') in -1..1}.

    Both images are NumPy arrays, the result's in float32.
    """
    if model_type not in MODEL_TYPES:
        expected = ", ".join(MODEL_TYPES)
        raise ConfigError(f"load_midas_transform: model_type {model_type!r}; expected {expected}")

    def transform(sample: dict[str, Any]) -> dict[str, Any]:
        image = torch.from_numpy(np.asarray(sample["image"], dtype=np.float32))
        return {**sample, "image": preprocess(2 * image.permute(2, 0, 1)[None] - 1)[0].numpy()}

    return transform


class AddMiDaS:
    """Adds the depth network's input to a training sample or to the batch of the reference's depth script."""

    def __init__(self, model_type: str = "dpt_hybrid") -> None:
        self.transform = load_midas_transform(model_type)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Set sample["midas_in"], a NumPy array (3, h', w'), from sample["jpg"] (h, w, 3), both in -1..1."""
        image = torch.as_tensor(sample["jpg"]).detach().cpu().numpy()
        sample["midas_in"] = self.transform({"image": (image + 1) / 2})["image"]
        return sample
