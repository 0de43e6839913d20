"""Name maps between published files and every other layout, both ways.

    published   model.diffusion_model.*   first_stage_model.*   cond_stage_model.*   control_model.*   ...
    diffusers   unet/                     vae/                  text_encoder/        controlnet/       ...
    bare        input_blocks.*            encoder.down.*        transformer.resblocks.*                ...

Pure functions on dictionaries of tensors, which may be on the meta device. No tensor is read, and none copied
but query, key and value where OpenCLIP keeps them as one. The structure (levels, blocks, where attention is)
is read off the names, so any size is understood. What diffusers has no place for is the part "unused", under
published names, and comes back from it: published -> parts -> published is the identity.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ldm.checkpoint.classify import classify
from ldm.checkpoint.identity import ADD_ONS
from ldm.checkpoint.layouts import controlnet, depth, image_encoder, image_normalizer, text_encoder, unet, vae
from ldm.checkpoint.layouts.renaming import Tensors, below, shown, with_prefix, without_prefix
from ldm.errors import NotACheckpointError, WrongModelError

Config = Mapping[str, Any] | None
UNUSED = "unused"


@dataclass(frozen=True)
class Part:
    """One folder of a diffusers pipeline, and one prefix of a published file."""

    name: str                                                   # diffusers' folder
    prefix: str                                                 # of the published names
    to_published: Callable[[Tensors, Config], Tensors]          # to the names below the prefix
    to_diffusers: Callable[[Tensors], tuple[Tensors, Tensors]]  # from them; and what there is no place for


def _all(rename: Callable[[Tensors], Tensors]) -> Callable[[Tensors], tuple[Tensors, Tensors]]:
    return lambda tensors: (rename(tensors), {})


def _any_config(rename: Callable[[Tensors], Tensors]) -> Callable[[Tensors, Config], Tensors]:
    return lambda tensors, config: rename(tensors)


def _split_vae(tensors: Tensors) -> tuple[Tensors, Tensors]:
    kept = {name: x for name, x in tensors.items() if vae.is_of_diffusers(name)}
    return vae.to_diffusers(kept), {name: x for name, x in tensors.items() if name not in kept}


PARTS = {
    name: Part(name, prefix, to_published, to_diffusers)
    for name, prefix, to_published, to_diffusers in (
        ("unet", "model.diffusion_model.", _any_config(unet.to_published), _all(unet.to_diffusers)),
        ("vae", "first_stage_model.", _any_config(vae.to_published), _split_vae),
        ("text_encoder", "cond_stage_model.", text_encoder.to_published, text_encoder.to_diffusers),
        ("controlnet", "control_model.", _any_config(controlnet.to_published), _all(controlnet.to_diffusers)),
        (
            "image_normalizer", "noise_augmentor.",
            _any_config(image_normalizer.to_published), image_normalizer.to_diffusers,
        ),
        ("image_encoder", "embedder.", _any_config(image_encoder.to_published), image_encoder.to_diffusers),
        ("depth_estimator", "depth_model.", _any_config(depth.to_published), depth.to_diffusers),
    )
}  # fmt: skip

# Folders of a pipeline that a published file has no place for, and that its pictures do not need.
LEFT_OUT = ("safety_checker", "prior", "prior_text_encoder", "image_noising_scheduler")


@dataclass(frozen=True)
class Layout:
    """What the names of a single file look like, and how they become published ones."""

    name: str                                       # for messages
    telltale: re.Pattern[str]                       # one name that begins so is enough
    to_published: Callable[[Tensors, Config], Tensors]


def _part(part: str) -> Callable[[Tensors, Config], Tensors]:
    return lambda tensors, config: part_to_published(part, tensors, config)


def _under(prefix: str) -> Callable[[Tensors, Config], Tensors]:
    return lambda tensors, config: with_prefix(prefix, tensors)


def _as_published(tensors: Tensors, config: Config) -> Tensors:
    """Pass published names; a text encoder that transformers 5 saved gets its `text_model.` back."""
    shallow = re.compile(r"cond_stage_model\.transformer\.(?=(embeddings|encoder|final_layer_norm)\.)")
    return {shallow.sub(r"\g<0>text_model.", name): x for name, x in tensors.items()}


def _hf_text(tensors: Tensors, config: Config) -> Tensors:
    return part_to_published("text_encoder", without_prefix("transformer.", tensors), config)


def _openai_text(tensors: Tensors, config: Config) -> Tensors:
    """Place a CLIP with OpenCLIP's names: ViT-L/14's tower is SD 1.x's text encoder, others SD 2.x's."""
    tower = without_prefix("model.", tensors)
    prefix = PARTS["text_encoder"].prefix
    if text_encoder.width(tower) == text_encoder.CLIP_WIDTH:
        found, _ = text_encoder.transformers_names(tower)
        return with_prefix(prefix + text_encoder.CLIP, found)
    text = {name: x for name, x in tower.items() if not name.startswith("visual.")}
    return with_prefix(prefix + text_encoder.OPENCLIP, text)


def _layout(name: str, telltale: str, to_published: Callable[[Tensors, Config], Tensors]) -> Layout:
    return Layout(name, re.compile(telltale), to_published)


PUBLISHED = (
    r"(model\.diffusion_model|first_stage_model|cond_stage_model|control_model|depth_model|embedder"
    r"|noise_augmentor|low_scale_model)\.|model_ema\.diffusion_model"
)
# The first layout with a telltale name is taken.
LAYOUTS = [
    _layout("published", PUBLISHED, _as_published),
    _layout("diffusers ControlNet", r"controlnet_(down|mid|cond)_", _part("controlnet")),
    _layout("diffusers UNet", r"(down|up)_blocks\.\d+\.(resnets|attentions)\.", _part("unet")),
    _layout("diffusers VAE", r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.", _part("vae")),
    _layout("bare ControlNet", r"(zero_convs|input_hint_block)\.\d", _under("control_model.")),
    _layout("bare UNet", r"(input|output)_blocks\.\d", _under("model.diffusion_model.")),
    _layout("bare UNet", r"diffusion_model\.(input|output)_blocks\.\d", _under("model.")),
    _layout("bare VAE", r"(encoder|decoder)\.(down|up|mid)\.", _under("first_stage_model.")),
    _layout("HF text encoder", r"(transformer\.)?(text_model\.)?embeddings\.token_embedding\.", _hf_text),
    _layout("OpenCLIP text encoder", r"(model\.)?token_embedding\.weight$", _openai_text),
    _layout("HF image encoder", r"vision_model\.embeddings\.", _part("image_encoder")),
    _layout("HF depth estimator", r"dpt\.(embeddings|encoder)\.", _part("depth_estimator")),
    _layout("MiDaS DPT-hybrid", r"pretrained\.model\.(cls_token|patch_embed)", _under("depth_model.model.")),
    _layout("diffusers image normalizer", r"(mean|std)$", _part("image_normalizer")),
]

NO_MODELS = ("lora", "lycoris", "foreign")      # whatever else their names look like
FOREIGN_PARTS = {
    "text_encoder_2": "is an SDXL pipeline; only SD 1.x and 2.x are read",
    "transformer": "is an SD3 or Flux pipeline; only SD 1.x and 2.x are read",
}
EXAMPLES = 3


def layout_of(names: Iterable[str]) -> Layout | None:
    """Return the layout of a single file by its names, or None."""
    names = list(names)
    return next((layout for layout in LAYOUTS if any(layout.telltale.match(name) for name in names)), None)


def part_to_published(part: str, tensors: Tensors, config: Config = None) -> Tensors:
    """Rename one part of a diffusers folder to full published names.

    Args:
        part: a key of PARTS.
        config: its config.json, if there; it tells SD 1.x's from SD 2.x's text encoder.

    Raises:
        WrongModelError: a tensor that this part has not in SD 1.x and 2.x.
    """
    row = PARTS[part]
    return with_prefix(row.prefix, row.to_published(tensors, config))


def published_to_parts(tensors: Tensors) -> dict[str, Tensors]:
    """Split published names into the parts of a diffusers folder, and "unused": what these have no place for.

    Raises:
        WrongModelError: a network with layers that diffusers has not.
    """
    parts: dict[str, Tensors] = {}
    placed: set[str] = set()
    unused: Tensors = {}
    for row in PARTS.values():
        inside = below(row.prefix, tensors)
        if inside:
            found, rest = row.to_diffusers(inside)
            if found:
                parts[row.name] = found
            unused |= with_prefix(row.prefix, rest)
            placed |= {row.prefix + name for name in inside}
    unused |= {name: x for name, x in tensors.items() if name not in placed}
    return {**parts, UNUSED: {name: unused[name] for name in tensors if name in unused}}


def to_published(
    parts: Mapping[str, Tensors],
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    source: str = "the file",
) -> Tensors:
    """Return any weights under full published names.

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
                published |= _single_to_published(tensors, configs.get(""))
            elif part == UNUSED:
                published |= tensors
            elif part in PARTS:
                config = configs.get(part)
                if part == "text_encoder":
                    config = _text_config(parts, config)
                published |= part_to_published(part, tensors, config)
            elif part in FOREIGN_PARTS:
                raise WrongModelError(FOREIGN_PARTS[part])
            elif part not in LEFT_OUT:
                raise WrongModelError(
                    f"has a part {part!r}, which no SD 1.x or 2.x model has; expected {', '.join(PARTS)}"
                )
    except (WrongModelError, NotACheckpointError) as error:
        raise type(error)(f"{source}: {error}") from error
    if not published:
        raise NotACheckpointError(f"{source}: holds no weights of a model; expected {', '.join(PARTS)}")
    return published


def _single_to_published(tensors: Tensors, config: Config) -> Tensors:
    about = classify({
        name: (str(x.dtype).removeprefix("torch."), tuple(x.shape)) for name, x in tensors.items()
    })  # fmt: skip
    layout = layout_of(tensors)
    if about.kind in NO_MODELS or (layout is None and about.kind in ADD_ONS):
        advice = "give a model of SD 1.x or 2.x" if about.kind == "foreign" else "give the checkpoint first"
        raise WrongModelError(f"is {about.sentence()}; {advice}")
    if layout is None:
        examples = [shown(name) for name in list(tensors)[:EXAMPLES]] + ["..."] * (len(tensors) > EXAMPLES)
        raise NotACheckpointError(
            f"holds {len(tensors)} tensors ({', '.join(examples)}) of no known model; expected "
            "a checkpoint of SD 1.x or 2.x, or a UNet, VAE, text encoder or ControlNet of one"
        )
    return layout.to_published(tensors, config)


def _text_config(parts: Mapping[str, Tensors], config: Config) -> Config:
    """Let what a folder keeps aside tell which text encoder it has, before the activation does."""
    openclip = PARTS["text_encoder"].prefix + text_encoder.OPENCLIP
    is_openclip = any(name.startswith(openclip) for name in parts.get(UNUSED, ()))
    return {"hidden_act": "gelu"} if is_openclip else config
