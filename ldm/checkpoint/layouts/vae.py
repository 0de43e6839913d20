"""The autoencoder: diffusers' AutoencoderKL <-> `first_stage_model.*`.

    encoder.down.L.block.I, .attn.I         encoder.down_blocks.L.resnets.I, .attentions.I
    encoder.down.L.downsample.conv          encoder.down_blocks.L.downsamplers.0.conv
    encoder.mid.block_1, .attn_1, .block_2  encoder.mid_block.resnets.0, .attentions.0, .resnets.1
    decoder.up.(n-1-L).block.I              decoder.up_blocks.L.resnets.I       counted from the latents

The projections of an attention are 1x1 convolutions (c, c, 1, 1) in reference files and linear (c, c) in
diffusers, which called them query, key, value, proj_attn before 0.18.
"""

import re
from collections.abc import Iterable

from ldm.checkpoint.layouts.renaming import Pairs, Tensors, backward, count, forward, renamed

WHAT = "the autoencoder"
OUTSIDE = [
    (f"{half}.{ours}", f"{half}.{theirs}")
    for half in ("encoder", "decoder")
    for ours, theirs in [("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")]
] + [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
RESNET = [(name, name) for name in ("norm1", "conv1", "norm2", "conv2")] + [("nin_shortcut", "conv_shortcut")]
ATTENTION = [("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")]
OLD_ATTENTION = [("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "proj_attn")]
MIDDLE = [("block_1", "resnets.0"), ("attn_1", "attentions.0"), ("block_2", "resnets.1")]

PROJECTION = re.compile(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight")     # the end of an LDM key name


def to_ldm(tensors: Tensors) -> Tensors:
    """Rename diffusers' names to those below `first_stage_model.`."""
    names = renamed(dict.fromkeys(tensors), forward(_pairs(_shape_of_diffusers(tensors))), WHAT)
    return {
        name: x[:, :, None, None] if PROJECTION.search(name) and x.ndim == 2 else x
        for name, x in zip(names, tensors.values(), strict=True)
    }


def to_diffusers(tensors: Tensors) -> Tensors:
    """Rename the names below `first_stage_model.` to diffusers' present ones."""
    linear = {
        name: x.reshape(x.shape[:2]) if PROJECTION.search(name) and x.ndim == 4 else x
        for name, x in tensors.items()
    }
    return renamed(linear, backward(_pairs(_shape_of_ldm(tensors))), WHAT)


def is_of_diffusers(name: str) -> bool:
    """Tell whether the AutoencoderKL of a reference file has a name that diffusers has a place for."""
    return name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))


Shape = dict[str, list[int]]            # half -> resnets of each level, in LDM's numbering


def _pairs(shape: Shape) -> Pairs:
    found = list(OUTSIDE)
    for half, (way, sampler) in {"encoder": ("down", "downsample"), "decoder": ("up", "upsample")}.items():
        levels = shape[half]
        for level, resnets in enumerate(levels):
            ours = f"{half}.{way}.{level}"
            theirs = f"{half}.{way}_blocks.{level if way == 'down' else len(levels) - 1 - level}"
            found.append((f"{ours}.{sampler}.conv", f"{theirs}.{sampler}rs.0.conv"))
            for index in range(resnets):
                found += _inside(f"{ours}.block.{index}", f"{theirs}.resnets.{index}")
                found += _inside(f"{ours}.attn.{index}", f"{theirs}.attentions.{index}")
        for ours, theirs in MIDDLE:
            found += _inside(f"{half}.mid.{ours}", f"{half}.mid_block.{theirs}")
    return found


def _inside(published: str, diffusers: str) -> Pairs:
    # Older names first: a table has one entry a key, and what comes last is what is written.
    inner = OLD_ATTENTION + ATTENTION if "attn" in published else RESNET
    return [(f"{published}.{ours}", f"{diffusers}.{theirs}") for ours, theirs in inner]


def _shape_of_ldm(names: Iterable[str]) -> Shape:
    return _counted(r"(encoder|decoder)\.(?:down|up)\.(\d\d?)\.block\.(\d\d?)\.", names)


def _shape_of_diffusers(names: Iterable[str]) -> Shape:
    shape = _counted(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d\d?)\.resnets\.(\d\d?)\.", names)
    return {"encoder": shape["encoder"], "decoder": shape["decoder"][::-1]}


def _counted(pattern: str, names: Iterable[str]) -> Shape:
    found: dict[str, dict[int, int]] = {"encoder": {}, "decoder": {}}
    for name in names:
        if match := re.match(pattern, name):
            levels, level = found[match[1]], int(match[2])
            levels[level] = max(levels.get(level, 0), int(match[3]) + 1)
    return {half: [levels.get(level, 0) for level in range(count(levels))] for half, levels in found.items()}
