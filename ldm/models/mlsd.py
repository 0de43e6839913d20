"""M-LSD, the large network (arXiv 2106.00186): line segments by their middle and the way to both ends.

    image and a plane of ones -> MobileNetV2 (arXiv 1801.04381) -> five maps, of strides 2, 4, 8, 16, 16
    joined from coarse to fine -> (b, 9, h/2, w/2): logit of a middle, x and y to the start and to the end,
                                  and four maps that only training uses

Parameter names are those of mlsd_large_512_fp32.pth.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
"""expansion, channels, blocks and stride of the first of them"""
WIDTH = 64              # channels of the joined maps
UNUSED = 7              # the first channels of the output


class ConvNorm(nn.Sequential):
    """Convolution, batch norm, relu6; with stride 2 it is padded at the right and below, as in TFLite."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        padding = 0 if stride == 2 else kernel // 2
        conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self[0].stride == (2, 2) else x)


class InvertedResidual(nn.Module):
    """Expansion by a 1x1 convolution, a convolution of each channel alone, and a projection."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.adds = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            *([ConvNorm(in_channels, inner, 1)] if expansion > 1 else []),
            ConvNorm(inner, inner, stride=stride, groups=inner),
            nn.Conv2d(inner, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class Backbone(nn.Module):
    """(b, 4, h, w) -> the last map of every stage."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvNorm(4, 32, stride=2)]
        self.taps, width = [], 32
        for expansion, channels, count, stride in STAGES:
            for i in range(count):
                layers.append(InvertedResidual(width, channels, 1 if i else stride, expansion))
                width = channels
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps


def conv(in_channels: int, channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size, batch norm and relu."""
    layer = nn.Conv2d(in_channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    return nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU())


class Join(nn.Module):
    """Two maps in 64 channels each, of which the coarser is enlarged to the size of the finer."""

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.conv1 = conv(coarse, WIDTH, 1)
        self.conv2 = conv(fine, WIDTH, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        x = self.conv1(coarse)
        if x.shape[-2:] != fine.shape[-2:]:
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
        return torch.cat((self.conv2(fine), x), dim=1)


class Refine(nn.Module):
    """x + conv(x), then 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(2 * WIDTH, 2 * WIDTH, 3)
        self.conv2 = conv(2 * WIDTH, WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(x + self.conv1(x))


class Head(nn.Module):
    """A dilated and a plain convolution, then the maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = conv(WIDTH, WIDTH, 3, dilation=5)
        self.conv2 = conv(WIDTH, WIDTH, 3)
        self.conv3 = nn.Conv2d(WIDTH, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


class MLSD(nn.Module):
    """(b, 4, h, w) in -1..1, RGB and ones, of sides that are multiples of 16 -> maps (b, 9, h/2, w/2)."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.block15, self.block16 = Join(64, 96), Refine()
        self.block17, self.block18 = Join(32, WIDTH), Refine()
        self.block19, self.block20 = Join(24, WIDTH), Refine()
        self.block21, self.block22 = Join(16, WIDTH), Refine()
        self.block23 = Head()

    def forward(self, images: Tensor) -> Tensor:
        *finer, x = self.backbone(images)
        joins = (self.block15, self.block17, self.block19, self.block21)
        refinements = (self.block16, self.block18, self.block20, self.block22)
        for fine, join, refine in zip(reversed(finer), joins, refinements, strict=True):
            x = refine(join(fine, x))
        return self.block23(x)[:, UNUSED:]
