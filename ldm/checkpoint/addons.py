"""Recognise what is no Stable Diffusion model: what changes one (LoRA, ...), and models of other families.

Each recogniser takes {name: Stored} and the metadata, and returns the fields of an Identity, or None.
The width of the context that a layer reads tells the family: 768 SD 1.x, 1024 SD 2.x, 2048 SDXL.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ldm.checkpoint.stored import Stored

Shapes = Mapping[str, Stored]
Fields = dict[str, Any]

FAMILIES = {768: "1.x", 1024: "2.x", 2048: "SDXL", 1280: "SDXL", 4096: "SD3 or Flux"}

# first name that matches -> whose it is; the first row counts
FOREIGN = [
    (r"(^|/|\.)ip_adapter\.|^image_proj\.", "IP-Adapter"),
    (r"motion_modules\.", "AnimateDiff motion module"),
    (r"\.fuser\.(attn|linear)|^position_net\.", "GLIGEN model"),
    (r"\.time_stack\.|\.time_mixer\.|temporal_transformer_blocks\.", "Stable Video Diffusion model"),
    (r"^conditioner\.embedders\.1\.|^(unet/)?add_embedding\.|^text_encoder_2/", "SDXL model"),
    (r"^conditioner\.embedders\.0\.model\.", "SDXL refiner"),
    (r"^conditioner\.embedders\.", "SDXL model"),
    (r"(^|\.)joint_blocks\.|^transformer/.*\.add_k_proj\.|^text_encoder_3/", "SD3 model"),
    (r"(^|\.)(double_blocks|double_stream_modulation_img)\.|(^|/)single_transformer_blocks\.", "Flux model"),
    (r"(^|\.)double_layers\.\d+\.(attn|mlp)", "AuraFlow model"),
    (r"(^|\.)(adaln_single|caption_projection|y_embedder)\.", "PixArt model"),
    (r"(^|\.)(cap_embedder|noise_refiner)\.", "Lumina model"),
    (r"(^|\.)(clip_txt_mapper|effnet_mapper|clip_txt_pooled_mapper)\.", "Stable Cascade model"),
    (r"(^|\.)(mlp_t5|text_embedding_padding|default_modulation)", "Hunyuan-DiT model"),
    (r"(^|/|\.)txt_norm\.|(^|/)transformer_blocks\.\d+\.img_mod", "Qwen-Image model"),
    (r"(^|\.)blocks\.\d+\.(cross_attn|self_attn)\.[qk]\.", "Wan video model"),
    (r"(^|\.)encoder_hid_proj\.", "DeepFloyd IF or Kandinsky model"),
    (r"^(model\.1\.sub\.|conv_first\.|body\.\d+\.rdb)", "ESRGAN upscaler"),
    (r"^model\.layers\.\d+\.(self_attn|mlp)|^(lm_head|model\.embed_tokens)\.", "language model"),
    (r"^(encoder\.)?block\.\d+\.layer\.\d+\.", "T5 text encoder"),
]
LORA = [
    (r"^lora_(unet|te\d?|prior)_.*\.(lora_(up|down)|alpha|dora_scale)", "kohya"),
    (r"\.lora_(A|B)\.|\.lora_embedding_(A|B)", "PEFT"),
    (r"\.processor\..*_lora\.(down|up)\.", "diffusers attention processors"),
    (r"\.lora_linear_layer\.(down|up)\.|\.lora\.(down|up)\.|_lora\.(down|up)\.", "diffusers"),
    (r"^(unet|text_encoder):\d+:(up|down)", "cloneofsimo"),
    (r"\.lora_(up|down)\.", "kohya"),
]
LYCORIS = [
    (r"\.hada_w1_[ab]$", "LoHa"),
    (r"\.lokr_w[12](_[ab])?$", "LoKr"),
    (r"\.(oft_blocks|oft_diag)$", "OFT"),
    (r"\.on_input$", "IA3"),
    (r"\.a1\.weight$", "GLoRA"),
    (r"^lora_\w+\.diff(_b)?$", "full difference"),
]
CONTEXT_LAYER = re.compile(r"attn2[._](processor\.)?to_[kv]")
TEXT_LAYER = re.compile(r"(lora_te_|text_model).*(mlp[._]fc1|self_attn[._](to_)?q)")
DOWN = re.compile(r"(\.lora_down\.|\.lora_A\.|[._]lora\.down\.|lora_linear_layer\.down\.|:down$)")
RANKED = re.compile(DOWN.pattern + r"|\.hada_w1_b$|\.lokr_w[12]_b$")
HYPERNETWORK = re.compile(r"(\d+)\.[01]\.(linear\.\d+|linear[12])\.weight")
T2I_ADAPTER = re.compile(r"^(adapter\.)?body\.\d+\.(resnets\.\d+\.)?(block1|in_conv|body\.\d+\.block1)\.")
BASES = {"sd_v1": "1.x", "sd_1.5": "1.x", "stable-diffusion-v1": "1.x", "sd1": "1.x", "sd_v2": "2.x",
         "stable-diffusion-v2": "2.x", "sd2": "2.x", "sdxl": "SDXL", "stable-diffusion-xl": "SDXL",
         "sd3": "SD3", "stable-diffusion-3": "SD3", "flux": "Flux"}
# Families of a LoRA by the names of its layers, with dots for underscores; the first row counts.
LORA_FAMILIES = [
    (r"double\.blocks|single\.transformer\.blocks|single\.blocks", "Flux"),
    (r"transformer\.blocks\.\d+\.(img|txt)\.(mlp|mod)\.", "Qwen-Image"),
    (r"joint\.transformer\.blocks|double\.layers", "AuraFlow"),
    (r"joint\.blocks|transformer\.transformer\.blocks\.\d+\.attn\.|text\.encoder\.3\.", "SD3"),
    (r"(^|\.)blocks\.\d+\.(self|cross)\.attn\.[qkvo](\.|$)", "Wan"),
    (r"adaln\.single|caption\.projection", "PixArt"),
    (r"^lora\.prior\.|kv\.mapper", "Stable Cascade"),
    (r"(^|\.)layers\.\d+\.(attention|feed\.forward)\.", "Lumina"),
    (r"motion\.modules", "AnimateDiff"),
    (r"(^|\.)(transformer|diffusion\.model)\.transformer\.blocks", "a diffusion transformer"),
    (r"lora\.te2\.|text\.encoder\.2\.", "SDXL"),
]
ENCODERS = {"clip_l": 768, "clip_g": 1280, "t5xxl": 4096, "t5": 4096}      # of an embedding for several
MAX_VECTORS = 512           # of one word; a table with more rows is no embedding of words
OPTIMIZER = re.compile(
    r"(optimizer\.|optimizer_states\.\d+\.)?state\.\d+\.(step|exp_avg\w*|max_exp_avg\w*|momentum_buffer"
    r"|square_avg|grad_avg|acc_delta|sum|exp_inf|state\d|qmap\d|absmax\d)(\.|$)"
)


def recognise(shapes: Shapes, metadata: Mapping[str, str]) -> Fields | None:
    """Return what the weights are, if they are an add-on or another family's."""
    recognisers = (
        _training, _lycoris, _lora, _textual_inversion, _hypernetwork, _t2i_adapter, _foreign
    )  # fmt: skip
    return next((found for one in recognisers if (found := one(shapes, metadata)) is not None), None)


def _first(table: Iterable[tuple[str, str]], shapes: Iterable[str]) -> str | None:
    """Return the word of the first row that any name matches."""
    for pattern, word in table:
        search = re.compile(pattern).search
        if any(search(name) for name in shapes):
            return word
    return None


def _foreign(shapes: Shapes, metadata: Mapping[str, str]) -> Fields | None:
    name = _first(FOREIGN, shapes)
    width = next(
        (x.shape[-1] for key, x in shapes.items() if key.endswith(".attn2.to_k.weight") and x.shape), None
    )
    if name is None and width in (1280, 2048):
        name = {2048: "SDXL model", 1280: "SDXL refiner"}[width]
    return None if name is None else {"kind": "foreign", "family": name}


def _lora(shapes: Shapes, metadata: Mapping[str, str]) -> Fields | None:
    layout = _first(LORA, shapes)
    if layout is None:
        return None
    is_dora = any(name.endswith(("dora_scale", "lora_magnitude_vector")) for name in shapes)
    kernels = {x.shape[-1] for name, x in shapes.items() if DOWN.search(name) and len(x.shape) == 4}
    variant = "DoRA" if is_dora else "LoCon" if kernels - {1} else "LoRA"
    family = _family(shapes, metadata)
    return {"kind": "lora", "layout": layout, "variant": variant, "family": family, "rank": _rank(shapes)}


def _lycoris(shapes: Shapes, metadata: Mapping[str, str]) -> Fields | None:
    variant = _first(LYCORIS, shapes)
    if variant is None:
        return None
    family = _family(shapes, metadata)
    return {"kind": "lycoris", "layout": "kohya", "variant": variant, "family": family, "rank": _rank(shapes)}


def _rank(shapes: Shapes) -> str | None:
    """Return the rank, or how far it ranges."""
    ranks = sorted({x.shape[0] for name, x in shapes.items() if RANKED.search(name) and len(x.shape) >= 2})
    return None if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def _family(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """Return the family that a LoRA is for: by other families' names, by widths, by what it says."""
    named = _first(LORA_FAMILIES, [name.replace("_", ".") for name in shapes])
    if named is not None:
        return named
    for layer in (CONTEXT_LAYER, TEXT_LAYER):
        for name, x in shapes.items():
            if layer.search(name) and (DOWN.search(name) or name.endswith("hada_w1_b")) and len(x.shape) >= 2:
                return FAMILIES.get(x.shape[1])
    for key in ("modelspec.architecture", "ss_base_model_version", "sd version"):
        said = metadata.get(key, "").lower()
        bases = [base for base in BASES if said.startswith(base)]
        if bases:
            return BASES[max(bases, key=len)]
    return None


def _training(shapes: Shapes, metadata: Mapping[str, str]) -> Fields | None:
    """Recognise the states that scripts/train.py resumes from, and an optimizer's state alone."""
    if {name.partition(".")[0] for name in shapes} in ({"trained"}, {"trained", "optimizers"}):
        return {"kind": "training"}
    return {"kind": "optimizer"} if shapes and all(map(OPTIMIZER.match, shapes)) else None


def _textual_inversion(shapes: Shapes, metadata: Mapping[str, str]) -> Fields | None:
    """Recognise A1111's .pt, diffusers' .bin and .safetensors: (n, width) or (width,), of a word or many."""
    found = {name: x for name, x in shapes.items() if name.startswith("string_to_param.")}
    if found:
        layout = "A1111"
    elif shapes and shapes.keys() <= ENCODERS.keys():
        return _for_several_encoders(shapes)
    else:
        layout, found = "A1111, as safetensors" if "emb_params" in shapes else "diffusers", dict(shapes)
    if not found or not all(_is_embedding(x) for x in found.values()):
        return None
    if layout == "diffusers" and any(name.endswith((".weight", ".bias")) for name in found):
        return None
    widths = {x.shape[-1] for x in found.values()}
    if len(widths) > 1:
        return None
    width = widths.pop()
    vectors = sum(x.shape[0] if len(x.shape) == 2 else 1 for x in found.values())
    words = f"{len(found)} words" if len(found) > 1 else None
    return {
        "kind": "textual_inversion", "layout": layout, "family": FAMILIES[width], "variant": words,
        "vectors": vectors, "context_width": width,
    }  # fmt: skip


def _is_embedding(x: Stored) -> bool:
    is_short = len(x.shape) == 1 or (len(x.shape) == 2 and x.shape[0] <= MAX_VECTORS)
    return is_short and x.shape[-1] in FAMILIES and "float" in x.dtype


def _for_several_encoders(shapes: Shapes) -> Fields | None:
    """Recognise an embedding by what each text encoder takes: SD 1.x has CLIP-L, SDXL CLIP-G too, ..."""
    if not all(_is_embedding(x) and x.shape[-1] == ENCODERS[name] for name, x in shapes.items()):
        return None
    has_t5, has_g = bool(shapes.keys() & {"t5xxl", "t5"}), "clip_g" in shapes
    family = ("SD3" if has_g else "Flux") if has_t5 else "SDXL" if has_g else "1.x"
    name, x = next(iter(shapes.items()))
    return {
        "kind": "textual_inversion", "family": family, "vectors": x.shape[0] if len(x.shape) == 2 else 1,
        "layout": {1: name, 2: "two text encoders"}.get(len(shapes), "three text encoders"),
        "context_width": x.shape[-1],
    }  # fmt: skip


def _hypernetwork(shapes: Shapes, metadata: Mapping[str, str]) -> Fields | None:
    widths = {int(hit[1]) for hit in map(HYPERNETWORK.fullmatch, shapes) if hit}
    if not widths:
        return None
    family = "2.x" if 1024 in widths else "1.x" if 768 in widths else None
    return {"kind": "hypernetwork", "layout": "A1111", "family": family}


def _t2i_adapter(shapes: Shapes, metadata: Mapping[str, str]) -> Fields | None:
    if not any(T2I_ADAPTER.search(name) for name in shapes):
        return None
    first = [x for name, x in shapes.items() if name.endswith("conv_in.weight") and len(x.shape) == 4]
    family = None
    if first:                   # its input channels are blocks of 16 x 16 or 8 x 8 pixels
        family = "SDXL" if first[0].shape[1] % 256 == 0 else "1.x"
    return {"kind": "t2i_adapter", "family": family}
