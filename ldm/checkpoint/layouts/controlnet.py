"""The ControlNet: diffusers' ControlNetModel <-> `control_model.*` (arXiv 2302.05543).

    input_blocks, middle_block, time_embed      the way down and the middle of a UNet, named as there
    input_hint_block.0, .2, ... .2k             controlnet_cond_embedding.conv_in, .blocks.0, ... .conv_out
    zero_convs.N.0                              controlnet_down_blocks.N
    middle_block_out.0                          controlnet_mid_block
"""

import re
from collections.abc import Iterable

from ldm.checkpoint.layouts import unet
from ldm.checkpoint.layouts.renaming import Pairs, Tensors, backward, count, forward, renamed

WHAT = "the ControlNet"


def to_ldm(tensors: Tensors) -> Tensors:
    """Rename diffusers' names to those below `control_model.`."""
    plan = unet.plan_of_diffusers(tensors)
    hint_convs = 2 + _count(r"controlnet_cond_embedding\.blocks\.(\d\d?)\.", tensors)
    return renamed(tensors, forward(unet.OUTSIDE + unet.pairs(plan) + _control(plan, hint_convs)), WHAT)


def to_diffusers(tensors: Tensors) -> Tensors:
    """Rename the names below `control_model.` to diffusers'."""
    plan = unet.plan_of_ldm(tensors)
    hint_convs = 1 + (_count(r"input_hint_block\.(\d\d?)\.", tensors) - 1) // 2
    return renamed(tensors, backward(unet.OUTSIDE + unet.pairs(plan) + _control(plan, hint_convs)), WHAT)


def _control(plan: unet.Plan, hint_convs: int) -> Pairs:
    hint = ["conv_in", *(f"blocks.{i}" for i in range(hint_convs - 2)), "conv_out"]
    outputs = sum(len(level) + 1 for level in plan.down)  # resnets after conv_in or a downsampler
    return [
        *((f"input_hint_block.{2 * i}", f"controlnet_cond_embedding.{name}") for i, name in enumerate(hint)),
        *((f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}") for i in range(outputs)),
        ("middle_block_out.0", "controlnet_mid_block"),
    ]


def _count(pattern: str, names: Iterable[str]) -> int:
    return count(int(match[1]) for name in names if (match := re.match(pattern, name)))
