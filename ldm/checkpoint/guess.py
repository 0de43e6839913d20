"""Say in a few words what a set of weights is, from its names and shapes alone."""

import re
from collections.abc import Mapping

Shapes = Mapping[str, tuple[int, ...]]

UNET = "model.diffusion_model."
FIRST_CONV = UNET + "input_blocks.0.0.weight"

# A name that gives a kind of file away -> what the file is. The first hit counts.
TELLTALES = [
    (re.compile(r"(^lora_(unet|te)|\.lora_(up|down|A|B)\.|\.processor\..*_lora\.)"), "a LoRA, no model"),
    (re.compile(r"\.hada_w1_a$|\.lokr_w1"), "a LyCORIS, no model"),
    (re.compile(r"^control_model\.|^zero_convs\."), "a ControlNet"),
    (re.compile(r"^string_to_param|^emb_params$"), "a textual-inversion embedding"),
    (re.compile(r"^(unet\.)?down_blocks\.\d+\.(attentions|resnets)"), "a UNet in the diffusers layout"),
    (re.compile(r"^(vae\.)?(encoder|decoder)\.(down|up)_blocks\."), "an autoencoder in the diffusers layout"),
    (re.compile(r"^(encoder|decoder)\.(down|up)\.\d"), "an autoencoder alone"),
    (re.compile(r"^text_model\.encoder\."), "a CLIP text encoder alone"),
    (re.compile(r"^(input_blocks|output_blocks)\.\d"), "a UNet alone"),
    (re.compile(r"^conditioner\.embedders\."), "an SDXL model"),
    (re.compile(r"^(model\.diffusion_model\.)?(joint_blocks|double_blocks)\."), "an SD3 or Flux model"),
]
TASKS = {4: "text-to-image", 5: "depth-to-image", 7: "x4 upscaling", 8: "picture editing", 9: "inpainting"}
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x"}


def guess(shapes: Shapes) -> str:
    """Return what weights of these names and shapes are, such as "SD 2.x for inpainting"."""
    for pattern, what in TELLTALES:
        if any(pattern.search(name) for name in shapes):
            return what
    if not any(name.startswith(UNET) for name in shapes):
        only_ema = any(name.startswith("model_ema.diffusion_model") for name in shapes)
        return "an EMA copy without the weights proper" if only_ema else "no diffusion model"
    return " ".join([_family(shapes), *_kind(shapes), *_lacking(shapes)])


def _family(shapes: Shapes) -> str:
    width = next((s[-1] for name, s in shapes.items() if name.endswith(".attn2.to_k.weight")), None)
    if width is None:
        return "an unconditional model"
    return FAMILIES.get(width, f"a model of context width {width}")


def _kind(shapes: Shapes) -> list[str]:
    shape = shapes.get(FIRST_CONV, ())
    channels = shape[1] if len(shape) == 4 else None
    kind = [f"for {TASKS.get(channels, 'an unknown task')} ({channels} input channels)"] if channels else []
    if any(name.startswith(UNET + "label_emb.0.") for name in shapes):
        kind.append("with image-embedding conditioning (unCLIP)")
    return kind


def _lacking(shapes: Shapes) -> list[str]:
    parts = {"first_stage_model.": "VAE", "cond_stage_model.": "text encoder"}
    there = {prefix for prefix in parts if any(name.startswith(prefix) for name in shapes)}
    return [f"without {part}" for prefix, part in parts.items() if prefix not in there]
