"""The text encoder: transformers' CLIPTextModel <-> `cond_stage_model.*`.

    SD 1.x   cond_stage_model.transformer.text_model.X        text_model.X
    SD 2.x   cond_stage_model.model.transformer.resblocks.N   text_model.encoder.layers.N

OpenCLIP keeps query, key and value in one matrix, in_proj = [q; k; v]. SD 2.x reads the output of the last
block but one, so transformers' model has one block less; it has no place for the last block, nor for
`logit_scale` and `text_projection`. transformers 5 saves X without `text_model.`; every release reads it
with. OpenAI's own CLIP files use OpenCLIP's names.
"""

import re
from collections.abc import Mapping
from typing import Any

from ldm.checkpoint.layouts.renaming import Tensors, shown, thirds, with_prefix, without_prefix
from ldm.errors import WrongModelError

TOWER = "text_model."
CLIP, OPENCLIP = "transformer.text_model.", "model."        # below cond_stage_model., of SD 1.x and SD 2.x
CLIP_WIDTH = 768                                            # of ViT-L/14, SD 1.x's

OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
IN_PROJ = "attn.in_proj_"
QKV = ("q_proj", "k_proj", "v_proj")
POSITION_IDS = "embeddings.position_ids"
PROJECTION = "text_projection.weight"                       # CLIPTextModelWithProjection's, transposed

OTHER_TOWER = re.compile(r"vision_model\.|visual_projection\.|logit_scale$")    # of a whole CLIPModel
RESBLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.([\w.]+?)[._](weight|bias)")
LAYER = re.compile(r"encoder\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")


def to_ldm(tensors: Tensors, config: Mapping[str, Any] | None = None) -> Tensors:
    """Rename transformers' names, with or without `text_model.`, to those below `cond_stage_model.`.

    Args:
        config: the part's config.json, whose activation tells OpenCLIP's tower (gelu) from OpenAI's
            (quick_gelu); without it the width does.
    """
    tower = {name.removeprefix(TOWER): x for name, x in tensors.items() if not OTHER_TOWER.match(name)}
    projection = tower.pop(PROJECTION, None)
    if not is_openclip(tower, config):
        return with_prefix(CLIP, tower)
    published = openclip_names(tower)
    if projection is not None:
        published["text_projection"] = projection.T
    return with_prefix(OPENCLIP, published)


def to_diffusers(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Rename the names below `cond_stage_model.`; return also those that transformers has no place for."""
    if any(name.startswith(OPENCLIP) for name in tensors):
        return _from_openclip(tensors)
    kept = {name: x for name, x in tensors.items() if name.startswith(CLIP)}
    kept.pop(CLIP + POSITION_IDS, None)
    unused = {name: x for name, x in tensors.items() if name not in kept}
    return without_prefix(CLIP.removesuffix(TOWER), kept), unused


def is_openclip(tower: Tensors, config: Mapping[str, Any] | None = None) -> bool:
    """Tell by the config, else by the width, whether transformers' tensors are an OpenCLIP tower."""
    if config:
        return config.get("hidden_act", "quick_gelu") != "quick_gelu"
    return width(tower) > CLIP_WIDTH


def width(tower: Tensors) -> int:
    """Return the width of a tower by either naming, or 0 without token embeddings."""
    embeddings = (x for name, x in tower.items() if name.endswith("token_embedding.weight"))
    return next((x.shape[-1] for x in embeddings if x.ndim == 2), 0)


def openclip_names(
    tower: Tensors, outside: Mapping[str, str] = OUTSIDE, what: str = "the text encoder"
) -> Tensors:
    """Rename transformers' names below `text_model.` to OpenCLIP's; q, k and v are copied into one.

    Args:
        outside: OpenCLIP's -> transformers' names of what is outside the blocks.
    """
    import torch

    outside = {theirs: ours for ours, theirs in outside.items()}
    inside = {theirs: ours for ours, theirs in BLOCK.items()}
    published: Tensors = {}
    for name, tensor in tower.items():
        layer = LAYER.fullmatch(name)
        if name in outside:
            published[outside[name]] = tensor
        elif layer and layer[2] in inside:
            published[f"transformer.resblocks.{layer[1]}.{inside[layer[2]]}.{layer[3]}"] = tensor
        elif layer and layer[2].removeprefix("self_attn.") in QKV:
            path = f"encoder.layers.{layer[1]}.self_attn"
            joined = f"transformer.resblocks.{layer[1]}.{IN_PROJ}{layer[3]}"
            if joined not in published:
                qkv = [tower.get(f"{path}.{part}.{layer[3]}") for part in QKV]
                if len({None if x is None else x.shape for x in qkv}) > 1:
                    raise WrongModelError(
                        f"{what} lacks {layer[3]} of q, k or v in {path}, or has one misshapen"
                    )
                published[joined] = torch.cat(qkv)
        elif name != POSITION_IDS:
            raise WrongModelError(f"{what} has {shown(name)}, which CLIP's tower has not")
    return published


def transformers_names(tower: Tensors, outside: Mapping[str, str] = OUTSIDE) -> tuple[Tensors, Tensors]:
    """Rename OpenCLIP's (or OpenAI's) names to transformers' below `text_model.`; return also the rest."""
    found: Tensors = {}
    rest: Tensors = {}
    for name, tensor in tower.items():
        block = RESBLOCK.fullmatch(name)
        if name in outside:
            found[outside[name]] = tensor
        elif block and block[2] in BLOCK:
            found[f"encoder.layers.{block[1]}.{BLOCK[block[2]]}.{block[3]}"] = tensor
        elif block and block[2] == IN_PROJ.removesuffix("_"):
            for part, third in zip(QKV, thirds(name, tensor), strict=True):
                found[f"encoder.layers.{block[1]}.self_attn.{part}.{block[3]}"] = third
        else:
            rest[name] = tensor
    return found, rest


def _from_openclip(tensors: Tensors) -> tuple[Tensors, Tensors]:
    tower = {name.removeprefix(OPENCLIP): x for name, x in tensors.items() if name.startswith(OPENCLIP)}
    last = max((int(block[1]) for name in tower if (block := RESBLOCK.fullmatch(name))), default=0)
    read = {name: x for name, x in tower.items() if not name.startswith(f"transformer.resblocks.{last}.")}
    found, rest = transformers_names(read)
    placed = {OPENCLIP + name for name in read if name not in rest}
    return with_prefix(TOWER, found), {name: x for name, x in tensors.items() if name not in placed}
