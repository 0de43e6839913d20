"""The depth network: transformers' DPTForDepthEstimation (hybrid) <-> `depth_model.*`.

    model.pretrained.model.blocks.N   dpt.encoder.layer.N
    model.scratch.refinenet{4-i}      neck.fusion_stage.layers.{i}      coarse to fine

MiDaS's own file, dpt_hybrid-midas-501f0c75.pt, has the LDM key names without `depth_model.model.`. They
keep query, key and value in one matrix, qkv = [q; k; v]. transformers has no place for the classifier `head`
that the backbone was trained with.
"""

import re
from collections.abc import Iterable

from ldm.checkpoint.layouts.renaming import Pairs, Tensors, backward, forward, renamed
from ldm.errors import WrongModelError

WHAT = "the depth network"
VIT, BACKBONE = "model.pretrained.model.", "model.pretrained.model.patch_embed.backbone."
BIT = "dpt.embeddings.backbone.bit."
UNUSED = VIT + "head."
POOLER = "dpt.pooler."          # of DPTModel; nothing of it reaches the depth

OUTSIDE: Pairs = [
    (VIT + "cls_token", "dpt.embeddings.cls_token"),
    (VIT + "pos_embed", "dpt.embeddings.position_embeddings"),
    (VIT + "patch_embed.proj", "dpt.embeddings.projection"),
    (VIT + "norm", "dpt.layernorm"),
    (BACKBONE + "stem.conv", BIT + "embedder.convolution"),
    (BACKBONE + "stem.norm", BIT + "embedder.norm"),
    ("model.pretrained.act_postprocess3.0.project", "neck.reassemble_stage.readout_projects.2"),
    ("model.pretrained.act_postprocess3.3", "neck.reassemble_stage.layers.2.projection"),
    ("model.pretrained.act_postprocess4.0.project", "neck.reassemble_stage.readout_projects.3"),
    ("model.pretrained.act_postprocess4.3", "neck.reassemble_stage.layers.3.projection"),
    ("model.pretrained.act_postprocess4.4", "neck.reassemble_stage.layers.3.resize"),
    *((f"model.scratch.layer{i + 1}_rn", f"neck.convs.{i}") for i in range(4)),
    *(
        (f"model.scratch.refinenet{4 - i}.{ours}", f"neck.fusion_stage.layers.{i}.{theirs}")
        for i in range(4)
        for ours, theirs in (
            ("out_conv", "projection"),
            ("resConfUnit1.conv1", "residual_layer1.convolution1"),
            ("resConfUnit1.conv2", "residual_layer1.convolution2"),
            ("resConfUnit2.conv1", "residual_layer2.convolution1"),
            ("resConfUnit2.conv2", "residual_layer2.convolution2"),
        )
    ),
    ("model.scratch.output_conv", "head.head"),
]
BLOCK: Pairs = [
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("attn.proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
]
QKV = ("query", "key", "value")

STAGE_BLOCK = re.compile(r".*\.stages\.(\d+)\.(?:blocks|layers)\.(\d+)\.")
VIT_BLOCK = re.compile(r"(?:model\.pretrained\.model\.blocks|dpt\.encoder\.layer)\.(\d+)\.")
JOINED = re.compile(r"model\.pretrained\.model\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
THIRD = re.compile(r"dpt\.encoder\.layer\.(\d+)\.attention\.attention\.(?:query|key|value)\.(weight|bias)")


def to_ldm(tensors: Tensors) -> Tensors:
    """Rename transformers' names to those below `depth_model.`; q, k and v are copied into one."""
    import torch

    table = forward(_pairs(tensors))
    published: Tensors = {}
    for name, tensor in tensors.items():
        third = THIRD.fullmatch(name)
        if third is None:
            if not name.startswith(POOLER):
                published |= renamed({name: tensor}, table, WHAT)
            continue
        joined = f"{VIT}blocks.{third[1]}.attn.qkv.{third[2]}"
        if joined not in published:
            names = [_third(third[1], part, third[2]) for part in QKV]
            missing = [name for name in names if name not in tensors]
            if missing:
                raise WrongModelError(f"{WHAT} lacks {', '.join(missing)}")
            published[joined] = torch.cat([tensors[name] for name in names])
    return published


def to_diffusers(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Rename the names below `depth_model.`; return also those that transformers has no place for."""
    table = backward(_pairs(tensors))
    found: Tensors = {}
    rest: Tensors = {}
    for name, tensor in tensors.items():
        joined = JOINED.fullmatch(name)
        if joined:
            for part, third in zip(QKV, tensor.chunk(3), strict=True):
                found[_third(joined[1], part, joined[2])] = third
        elif name.startswith(UNUSED):
            rest[name] = tensor
        else:
            found |= renamed({name: tensor}, table, WHAT)
    return found, rest


def _third(block: str, part: str, kind: str) -> str:
    return f"dpt.encoder.layer.{block}.attention.attention.{part}.{kind}"


def _pairs(names: Iterable[str]) -> Pairs:
    """Return all module paths, LDM's and transformers', of a network with these names of either kind."""
    names = list(names)
    stage_blocks = {(found[1], found[2]) for name in names if (found := STAGE_BLOCK.match(name))}
    blocks = {found[1] for name in names if (found := VIT_BLOCK.match(name))}
    pairs = [*OUTSIDE]
    for i, j in stage_blocks:
        pairs.append((f"{BACKBONE}stages.{i}.blocks.{j}", f"{BIT}encoder.stages.{i}.layers.{j}"))
    for n in blocks:
        pairs += [(f"{VIT}blocks.{n}.{ours}", f"dpt.encoder.layer.{n}.{theirs}") for ours, theirs in BLOCK]
    return pairs
