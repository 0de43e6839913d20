"""The UNet: diffusers' UNet2DConditionModel <-> `model.diffusion_model.*`.

LDM key names count blocks through all levels, diffusers' count within a level:

    input_blocks.0.0                conv_in
    input_blocks.N.0, N.1           down_blocks.L.resnets.I, .attentions.I
    input_blocks.N.0.op             down_blocks.L.downsamplers.0.conv       the last of each level but one
    middle_block.0, .1, .2          mid_block.resnets.0, .attentions.0, .resnets.1
    output_blocks.N.0, N.1          up_blocks.L.resnets.I, .attentions.I
    output_blocks.N.1 or N.2.conv   up_blocks.L.upsamplers.0.conv           after the level's last resnet

So the names of either side tell the plan (how many levels and resnets, which of them attend), and the plan
gives one table that is read in both directions. Tensors are the same on both sides.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ldm.checkpoint.layouts.renaming import Pairs, Tensors, backward, count, forward, renamed

WHAT = "the UNet"
RESNET = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
]
TRANSFORMER = ["norm", "proj_in", "transformer_blocks", "proj_out"]
OUTSIDE = [
    ("input_blocks.0.0", "conv_in"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "class_embedding.linear_1"),      # an image embedding: unCLIP
    ("label_emb.0.2", "class_embedding.linear_2"),
    ("label_emb", "class_embedding"),                   # a table of levels, or one linear layer
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
]

Level = list[bool]                      # for each resnet: whether an attention follows it


@dataclass(frozen=True)
class Plan:
    """What a UNet consists of, in the order of computation."""

    down: list[Level]
    middle: Level
    up: list[Level]


def to_ldm(tensors: Tensors) -> Tensors:
    """Rename diffusers' names to those below `model.diffusion_model.`."""
    return renamed(tensors, forward(OUTSIDE + pairs(plan_of_diffusers(tensors))), WHAT)


def to_diffusers(tensors: Tensors) -> Tensors:
    """Rename the names below `model.diffusion_model.` to diffusers'."""
    return renamed(tensors, backward(OUTSIDE + pairs(plan_of_ldm(tensors))), WHAT)


def pairs(plan: Plan) -> Pairs:
    """Return (LDM, diffusers) of every module inside the blocks."""
    found: Pairs = []
    number = 1
    for depth, level in enumerate(plan.down):
        for index, attends in enumerate(level):
            found += _resnet(f"input_blocks.{number}.0", f"down_blocks.{depth}.resnets.{index}")
            if attends:
                found += _attention(f"input_blocks.{number}.1", f"down_blocks.{depth}.attentions.{index}")
            number += 1
        if depth < len(plan.down) - 1:
            found.append((f"input_blocks.{number}.0.op", f"down_blocks.{depth}.downsamplers.0.conv"))
            number += 1
    place = 0
    for index, attends in enumerate(plan.middle):
        found += _resnet(f"middle_block.{place}", f"mid_block.resnets.{index}")
        if attends:
            found += _attention(f"middle_block.{place + 1}", f"mid_block.attentions.{index}")
        place += 1 + attends
    number = 0
    for depth, level in enumerate(plan.up):
        for index, attends in enumerate(level):
            found += _resnet(f"output_blocks.{number}.0", f"up_blocks.{depth}.resnets.{index}")
            if attends:
                found += _attention(f"output_blocks.{number}.1", f"up_blocks.{depth}.attentions.{index}")
            if index == len(level) - 1 and depth < len(plan.up) - 1:
                upsampler = f"output_blocks.{number}.{1 + attends}.conv"
                found.append((upsampler, f"up_blocks.{depth}.upsamplers.0.conv"))
            number += 1
    return found


def _resnet(published: str, diffusers: str) -> Pairs:
    return [(f"{published}.{ours}", f"{diffusers}.{theirs}") for ours, theirs in RESNET]


def _attention(published: str, diffusers: str) -> Pairs:
    return [(f"{published}.{layer}", f"{diffusers}.{layer}") for layer in TRANSFORMER]


def plan_of_diffusers(names: Iterable[str]) -> Plan:
    """Read the plan off diffusers' names; a hundred levels or more are a hostile file's."""
    found: dict[tuple[str, str], dict[str, set[int]]] = {}
    for name in names:
        block = re.match(r"(down|mid|up)_blocks?\.(?:(\d\d?)\.)?(resnets|attentions)\.(\d\d?)\.", name)
        if block:
            way, depth, kind, index = block.groups()
            found.setdefault((way, depth or "0"), {}).setdefault(kind, set()).add(int(index))

    def levels(way: str) -> list[Level]:
        depths = count(int(depth) for there, depth in found if there == way)
        return [_level(found.get((way, str(depth)), {})) for depth in range(depths)]

    return Plan(levels("down"), (levels("mid") or [[]])[0], levels("up"))


def _level(indices: dict[str, set[int]]) -> Level:
    attending = indices.get("attentions", set())
    return [index in attending for index in range(count(indices.get("resnets", ())))]


def plan_of_ldm(names: Iterable[str]) -> Plan:
    """Read the plan off the LDM key names."""
    layers: dict[str, dict[int, dict[int, str]]] = {}       # side -> block -> layer -> its first module
    for name in names:
        block = re.match(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d+)\.)?(\w+)\.", name)
        if block:
            side, number, layer, module = block.groups()
            layers.setdefault(side, {}).setdefault(int(number), {})[int(layer or 0)] = _kind(module)
    down: list[Level] = [[]]
    for number, block in sorted(layers.get("input_blocks", {}).items()):
        if block.get(0) == "op":
            down.append([])
        elif number:                                        # block 0 is the first convolution
            down[-1].append(block.get(1) == "attention")
    up: list[Level] = [[]]
    for _, block in sorted(layers.get("output_blocks", {}).items()):
        up[-1].append(block.get(1) == "attention")
        if "conv" in block.values():
            up.append([])
    middle: Level = []
    for _, block in sorted(layers.get("middle_block", {}).items()):
        if block[0] == "resnet":
            middle.append(False)
        elif middle:
            middle[-1] = True
    return Plan(down, middle, up)


def _kind(module: str) -> str:
    if module in ("op", "conv"):
        return module
    return "resnet" if module.endswith("_layers") or module == "skip_connection" else "attention"
