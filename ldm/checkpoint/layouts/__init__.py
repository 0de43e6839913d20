"""Name maps between LDM files and every other layout, both ways.

    LDM         model.diffusion_model.*   first_stage_model.*   cond_stage_model.*   control_model.*   ...
    diffusers   unet/                     vae/                  text_encoder/        controlnet/       ...
    bare        input_blocks.*            encoder.down.*        transformer.resblocks.*                ...

Pure functions on dictionaries of tensors, which may be on the meta device. No tensor is read, and none copied
but query, key and value where OpenCLIP keeps them as one. The structure (levels, blocks, where attention is)
is read off the names, so any size is understood. What diffusers has no place for is the part "unused", under
LDM key names, and comes back from it: LDM -> parts -> LDM is the identity.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ldm.checkpoint.classify import classify
from ldm.checkpoint.identity import ADD_ONS
from ldm.checkpoint.layouts import controlnet, depth, image_encoder, image_normalizer, text_encoder, unet, vae
from ldm.checkpoint.layouts.renaming import Tensors, below, shown, with_prefix, without_prefix
from ldm.checkpoint.parts import PARTS, is_ldm, layout_of
from ldm.errors import NotACheckpointError, WrongModelError
from ldm.wording import counted

Config = Mapping[str, Any] | None
UNUSED = "unused"


# To the names below a part's prefix; and from them, with what diffusers has no place for.
ToLdm = Callable[[Tensors, Config], Tensors]
ToDiffusers = Callable[[Tensors], tuple[Tensors, Tensors]]


def _all(rename: Callable[[Tensors], Tensors]) -> Callable[[Tensors], tuple[Tensors, Tensors]]:
    return lambda tensors: (rename(tensors), {})


def _any_config(rename: Callable[[Tensors], Tensors]) -> Callable[[Tensors, Config], Tensors]:
    return lambda tensors, config: rename(tensors)


def _split_vae(tensors: Tensors) -> tuple[Tensors, Tensors]:
    kept = {name: x for name, x in tensors.items() if vae.is_of_diffusers(name)}
    return vae.to_diffusers(kept), {name: x for name, x in tensors.items() if name not in kept}


RENAMINGS: dict[str, tuple[ToLdm, ToDiffusers]] = {
    "unet": (_any_config(unet.to_ldm), _all(unet.to_diffusers)),
    "vae": (_any_config(vae.to_ldm), _split_vae),
    "text_encoder": (text_encoder.to_ldm, text_encoder.to_diffusers),
    "controlnet": (_any_config(controlnet.to_ldm), _all(controlnet.to_diffusers)),
    "image_normalizer": (_any_config(image_normalizer.to_ldm), image_normalizer.to_diffusers),
    "image_encoder": (_any_config(image_encoder.to_ldm), image_encoder.to_diffusers),
    "depth_estimator": (_any_config(depth.to_ldm), depth.to_diffusers),
}

# Folders of a pipeline that an LDM file has no place for, and that its images do not need.
LEFT_OUT = ("safety_checker", "prior", "prior_text_encoder", "image_noising_scheduler")


def _as_ldm(tensors: Tensors) -> Tensors:
    """Pass LDM names; a text encoder that transformers 5 saved gets its `text_model.` back."""
    shallow = re.compile(r"cond_stage_model\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)")
    return {shallow.sub(r"\g<0>text_model.", name): x for name, x in tensors.items()}


def _openai_text(tensors: Tensors) -> Tensors:
    """Place a CLIP with OpenCLIP's names: ViT-L/14's tower is SD 1.x's text encoder, others SD 2.x's."""
    tower = without_prefix("model.", tensors)
    prefix = PARTS["text_encoder"].prefix
    if text_encoder.width(tower) == text_encoder.CLIP_WIDTH:
        found, _ = text_encoder.transformers_names(tower)
        return with_prefix(prefix + text_encoder.CLIP, found)
    text = {name: x for name, x in tower.items() if not name.startswith("visual.")}
    return with_prefix(prefix + text_encoder.OPENCLIP, text)


NO_MODELS = ("lora", "lycoris", "foreign")      # whatever else their names look like
FOREIGN_PARTS = {
    "text_encoder_2": "is an SDXL pipeline; only SD 1.x and 2.x are read",
    "transformer": "is an SD3 or Flux pipeline; only SD 1.x and 2.x are read",
}
EXAMPLES = 3


def part_to_ldm(part: str, tensors: Tensors, config: Config = None) -> Tensors:
    """Rename one part of a diffusers folder to full LDM key names.

    Args:
        part: a key of RENAMINGS.
        config: its config.json, if there; it tells SD 1.x's from SD 2.x's text encoder.

    Raises:
        WrongModelError: a tensor that this part has not in SD 1.x and 2.x.
    """
    to_ldm, _ = RENAMINGS[part]
    return with_prefix(PARTS[part].prefix, to_ldm(tensors, config))


def ldm_to_parts(tensors: Tensors) -> dict[str, Tensors]:
    """Split LDM key names into the parts of a diffusers folder, and "unused": what these have no place for.

    Raises:
        WrongModelError: a network with layers that diffusers has not.
    """
    parts: dict[str, Tensors] = {}
    placed: set[str] = set()
    unused: Tensors = {}
    for part, (_, to_diffusers) in RENAMINGS.items():
        prefix = PARTS[part].prefix
        inside = below(prefix, tensors)
        if inside:
            found, rest = to_diffusers(inside)
            if found:
                parts[part] = found
            unused |= with_prefix(prefix, rest)
            placed |= {prefix + name for name in inside}
    unused |= {name: x for name, x in tensors.items() if name not in placed}
    return {**parts, UNUSED: {name: unused[name] for name in tensors if name in unused}}


def to_ldm(
    parts: Mapping[str, Tensors],
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    source: str = "the file",
) -> Tensors:
    """Return any weights under full LDM key names.

    Args:
        parts: part of a diffusers folder -> its tensors; a single file, or a folder of unknown kind, is "".
        configs: part -> its config.json.
        source: what errors call the weights: the path.

    Raises:
        WrongModelError: weights of something else: SDXL, SD3, a LoRA, ...
        NotACheckpointError: names that belong to no known model.
    """
    configs = configs or {}
    published: Tensors = {}
    try:
        for part, tensors in parts.items():
            if part == "":
                published |= _single_to_ldm(tensors, configs.get(""))
            elif part == UNUSED:
                published |= tensors
            elif part in RENAMINGS:
                config = configs.get(part)
                if part == "text_encoder":
                    config = _text_config(parts, config)
                published |= part_to_ldm(part, tensors, config)
            elif part in FOREIGN_PARTS:
                raise WrongModelError(FOREIGN_PARTS[part])
            elif part not in LEFT_OUT:
                raise WrongModelError(
                    f"has a part {part!r}, which no SD 1.x or 2.x model has; expected {', '.join(RENAMINGS)}"
                )
    except (WrongModelError, NotACheckpointError) as error:
        raise type(error)(f"{source}: {error}") from error
    if not published:
        raise NotACheckpointError(f"{source}: holds no weights of a model; expected {', '.join(RENAMINGS)}")
    return published


def _single_to_ldm(tensors: Tensors, config: Config) -> Tensors:
    about = classify({
        name: (str(x.dtype).removeprefix("torch."), tuple(x.shape)) for name, x in tensors.items()
    })  # fmt: skip
    names = list(tensors)
    has_ldm_names, found = any(map(is_ldm, names)), layout_of(names)
    if about.kind in NO_MODELS or (not has_ldm_names and found is None and about.kind in ADD_ONS):
        advice = "give a model of SD 1.x or 2.x" if about.kind == "foreign" else "give the checkpoint first"
        raise WrongModelError(f"is {about.sentence()}; {advice}")
    if has_ldm_names:
        return _as_ldm(tensors)
    if found is None:
        examples = [shown(name) for name in names[:EXAMPLES]] + ["..."] * (len(names) > EXAMPLES)
        raise NotACheckpointError(
            f"holds {counted(len(names), 'tensor')} ({', '.join(examples)}) of no known model; expected "
            "a checkpoint of SD 1.x or 2.x, or a UNet, VAE, text encoder or ControlNet of one"
        )
    return _alone_to_ldm(*found, tensors, config)


def _alone_to_ldm(layout: str, part: str, tensors: Tensors, config: Config) -> Tensors:
    """Rename a file that holds one part."""
    if layout == "OpenCLIP" and part == "text_encoder":
        return _openai_text(tensors)
    if layout in ("OpenCLIP", "MiDaS"):
        return with_prefix(PARTS[part].prefix + "model.", tensors)
    if layout == "bare":
        return with_prefix(PARTS[part].prefix, without_prefix("diffusion_model.", tensors))
    if layout == "HF CLIP" and part == "text_encoder":
        tensors = without_prefix("transformer.", tensors)
    return part_to_ldm(part, tensors, config)


def _text_config(parts: Mapping[str, Tensors], config: Config) -> Config:
    """Let what a folder keeps aside tell which text encoder it has, before the activation does."""
    openclip = PARTS["text_encoder"].prefix + text_encoder.OPENCLIP
    is_openclip = any(name.startswith(openclip) for name in parts.get(UNUSED, ()))
    return {"hidden_act": "gelu"} if is_openclip else config
