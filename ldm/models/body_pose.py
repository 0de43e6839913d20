"""OpenPose's body network (arXiv 1611.08050): where body parts are, and which of them belong together.

    features F = ten convolutions of VGG-19 and two more, of stride 8
    stage 1:      L, S = branches of F             L: (b, 38, h/8, w/8) part affinity fields
    stages 2..6:  L, S = branches of (L, S, F)     S: (b, 19, h/8, w/8) heat maps of 18 parts, and background

Every convolution is followed by a relu, but for the last of each branch; the heat maps of stage 6 have one in
the released network.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

PAFS, HEATS = 38, 19
STRIDE = 8
FEATURES = (
    ("conv1_1", 64), ("conv1_2", 64), ("pool1_stage1", 0), ("conv2_1", 128), ("conv2_2", 128),
    ("pool2_stage1", 0), ("conv3_1", 256), ("conv3_2", 256), ("conv3_3", 256), ("conv3_4", 256),
    ("pool3_stage1", 0), ("conv4_1", 512), ("conv4_2", 512), ("conv4_3_CPM", 256), ("conv4_4_CPM", 128),
)  # fmt: skip
"""name of a layer -> its channels; 0 is a pooling"""


def features() -> nn.Sequential:
    """Return the layers that all stages see: (b, 3, h, w) -> (b, 128, h/8, w/8)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = 3
    for name, channels in FEATURES:
        if channels:
            layers[name] = nn.Conv2d(width, channels, 3, padding=1)
            layers[f"relu_{name}"] = nn.ReLU()
            width = channels
        else:
            layers[name] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def branch(stage: int, number: int) -> nn.Sequential:
    """Return branch 1 (part affinity fields) or 2 (heat maps) of a stage, 1 to 6."""
    first = stage == 1
    width, maps = 128 if first else 128 + PAFS + HEATS, PAFS if number == 1 else HEATS
    sizes = [(128, 3)] * 3 + [(512, 1), (maps, 1)] if first else [(128, 7)] * 5 + [(128, 1), (maps, 1)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (channels, kernel) in enumerate(sizes, start=1):
        name = f"conv5_{i}_CPM_L{number}" if first else f"Mconv{i}_stage{stage}_L{number}"
        layers[name] = nn.Conv2d(width, channels, kernel, padding=kernel // 2)
        if i < len(sizes) or (stage, number) == (6, 2):
            layers[f"relu_{name}"] = nn.ReLU()
        width = channels
    return nn.Sequential(layers)


class BodyPose(nn.Module):
    """BGR images (b, 3, h, w), level / 256 - 0.5 -> affinity fields and heat maps of stage 6, of stride 8."""

    def __init__(self, stages: int = 6) -> None:
        super().__init__()
        self.stages = stages
        self.model0 = features()
        for stage in range(1, stages + 1):
            for number in (1, 2):
                self.add_module(f"model{stage}_{number}", branch(stage, number))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen = x = self.model0(images)
        for stage in range(1, self.stages + 1):
            fields, heats = (self.get_submodule(f"model{stage}_{number}")(x) for number in (1, 2))
            x = torch.cat((fields, heats, seen), dim=1)
        return fields, heats


def renamed(tensors: Mapping[str, Tensor], network: BodyPose) -> dict[str, Tensor]:
    """Return weights under the names of the network; body_pose_model.pth names its layers alone."""
    places = {name.partition(".")[2]: name for name in network.state_dict()}
    return {places.get(name, name): x for name, x in tensors.items()}
