"""unCLIP's image encoder: transformers' CLIPVisionModelWithProjection <-> `embedder.model.visual.*`.

OpenCLIP keeps query, key and value in one matrix, in_proj = [q; k; v], and stores the projection transposed.
Reference files hold more of CLIP than the image tower: the whole text tower (L), or its embeddings and final
norm (H). transformers' model has no place for those.
"""

from ldm.checkpoint.layouts.renaming import Tensors, below, with_prefix
from ldm.checkpoint.layouts.text_encoder import openclip_names, transformers_names

VISUAL = "model.visual."                        # below embedder.
TOWER = "vision_model."
PROJECTION, THEIR_PROJECTION = "proj", "visual_projection.weight"
OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",             # spelled so in transformers
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}


def to_ldm(tensors: Tensors) -> Tensors:
    """Rename transformers' names to those below `embedder.`; q, k and v are copied into one."""
    tower = {name.removeprefix(TOWER): x for name, x in tensors.items() if name != THEIR_PROJECTION}
    visual = openclip_names(tower, OUTSIDE, "the image encoder")
    if THEIR_PROJECTION in tensors:
        visual[PROJECTION] = tensors[THEIR_PROJECTION].T
    return with_prefix(VISUAL, visual)


def to_diffusers(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Rename the names below `embedder.`; return also those that transformers has no place for."""
    found, rest = transformers_names(below(VISUAL, tensors), OUTSIDE)
    found = with_prefix(TOWER, found)
    if PROJECTION in rest:
        found[THEIR_PROJECTION] = rest.pop(PROJECTION).T
    aside = {name: x for name, x in tensors.items() if not name.startswith(VISUAL)}
    return found, aside | with_prefix(VISUAL, rest)
