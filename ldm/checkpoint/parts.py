"""The parts of a model: their key names, their diffusers folders, and what tells one from its key names.

One table for everything that reads, converts, merges or reports weights.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One network or table of a model."""

    name: str                       # folder of a diffusers pipeline, if it has one
    prefix: str                     # of its LDM key names
    label: str                      # in messages
    classes: tuple[str, ...] = ()   # what a config.json of it alone says
    of_transformers: bool = False   # its diffusers folder is a model of the transformers library
    is_network: bool = True


TABLE = (
    Part("unet", "model.diffusion_model.", "UNet", ("UNet2DConditionModel",)),
    Part("vae", "first_stage_model.", "VAE", ("AutoencoderKL",)),
    Part(
        "text_encoder", "cond_stage_model.", "text encoder",
        ("CLIPTextModel", "CLIPTextModelWithProjection"), of_transformers=True,
    ),
    Part("controlnet", "control_model.", "ControlNet", ("ControlNetModel",)),
    Part(
        "image_normalizer", "noise_augmentor.", "noise schedule of the image embedding",
        ("StableUnCLIPImageNormalizer",), is_network=False,
    ),
    Part(
        "image_encoder", "embedder.", "image encoder",
        ("CLIPVisionModelWithProjection",), of_transformers=True,
    ),
    Part(
        "depth_estimator", "depth_model.", "depth estimator",
        ("DPTForDepthEstimation",), of_transformers=True,
    ),
    Part("", "low_scale_model.", "noise schedule of the small image", is_network=False),
    Part("ema", "model_ema.", "EMA weights", is_network=False),
)  # fmt: skip
PARTS = {part.name: part for part in TABLE}
UNET, VAE = PARTS["unet"].prefix, PARTS["vae"].prefix
EMA = PARTS["ema"].prefix

# (layout, part, how one key name begins that tells it) of files that hold one part; the first row counts
TELLTALES = [
    (layout, part, re.compile(pattern))
    for layout, part, pattern in (
        ("diffusers", "controlnet", r"controlnet_(down_blocks|mid_block|cond_embedding)"),
        ("bare", "controlnet", r"(zero_convs|input_hint_block)\.\d"),
        ("bare", "unet", r"(diffusion_model\.)?(input|output)_blocks\.\d"),
        ("diffusers", "unet", r"(down|up)_blocks\.\d+\.(resnets|attentions)\."),
        ("diffusers", "vae", r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\."),
        ("bare", "vae", r"(encoder|decoder)\.(down|up|mid)\."),
        (
            "HF CLIP", "text_encoder",
            r"(transformer\.)?(text_model\.)?(embeddings\.token_embedding|encoder\.layers\.\d+\.self_attn)\.",
        ),
        ("OpenCLIP", "text_encoder", r"(model\.)?(token_embedding|transformer\.resblocks)\."),
        ("HF CLIP", "image_encoder", r"vision_model\."),
        ("OpenCLIP", "image_encoder", r"visual\."),
        ("HF DPT", "depth_estimator", r"(dpt|neck\.reassemble_stage)\."),
        ("MiDaS", "depth_estimator", r"pretrained\.model\."),
        ("diffusers", "image_normalizer", r"(mean|std)$"),
    )
]  # fmt: skip


def part_of(name: str) -> Part | None:
    """Return the part that an LDM key name belongs to."""
    return next((part for part in TABLE if name.startswith(part.prefix)), None)


def is_ldm(name: str) -> bool:
    """Tell whether a key name is of an LDM file; a VAE's training file has `model_ema.*` too."""
    part = part_of(name)
    return part is not None and (part.name != "ema" or name.startswith(EMA + "diffusion_model"))


def layout_of(names: Iterable[str]) -> tuple[str, str] | None:
    """Return (layout, part) of a file that holds one part by its key names; None if none of them tells."""
    names = list(names)
    return next(((layout, part) for layout, part, begins in TELLTALES if any(map(begins.match, names))), None)
