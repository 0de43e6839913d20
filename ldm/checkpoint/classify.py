"""Say what a set of weights is from names, shapes and labels alone.

Parts are recognised by the prefixes of LDM key names (`model.diffusion_model.`, ...), by the folders of a
diffusers pipeline ("unet/...": a slash is in no tensor's name), and in files of one part by the names
themselves. A UNet then tells the rest by three shapes:

    input channels      4 text-to-image, 5 depth, 7 upscaling, 8 editing, 9 inpainting
    context width       768 SD 1.x, 1024 SD 2.x
    label width         2048 unCLIP-H, 1536 unCLIP-L; of other widths an image encoder tells
"""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

from ldm.checkpoint.addons import recognise
from ldm.checkpoint.controlnet import DIFFERENCE
from ldm.checkpoint.identity import Identity
from ldm.checkpoint.parts import EMA, PARTS, TABLE, is_ldm, layout_of, part_of
from ldm.checkpoint.stored import Stored

Shapes = Mapping[str, Stored]
Group = dict[str, Stored]
Configs = Mapping[str, Mapping[str, Any]]       # part of a diffusers folder -> its config.json

SCHEDULE = re.compile(
    r"(low_scale_model\.|noise_augmentor\.)?((sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)?"
    r"alphas_cumprod(_prev)?|betas|posterior_\w+|logvar|lvlb_weights|scale_factor|model_ema\.(decay|num_updates))"
)
# How the names of what only training needed begin, in an LDM file and in one that holds one part.
DISCRIMINATOR = ("first_stage_model.loss.", "loss.")
LABELS = {part.name: part.label for part in TABLE if part.is_network}
LABELS |= {"ema": PARTS["ema"].label, "discriminator": "discriminator"}
CHANNEL_TASKS = {4: "txt2img", 5: "depth", 7: "upscale", 8: "instruct", 9: "inpaint"}
UNCLIP = {2048: "unclip-h", 1536: "unclip-l"}
FAMILIES = {768: "1.x", 1024: "2.x"}
TRUNKS = {"1.x": (320,), "2.x": (320, 256)}    # channels of the first layer; 256 is the upscaler's
DISTILLED = "distilled"
WHOLE_UNET = 600                # tensors; reference ones have 686 to 690, distilled ones far fewer
V_MARK = "v_pred"               # an empty tensor, by which some programs mark a file that predicts v
ZERO_SNR_MARK = "ztsnr"         # likewise, a file that was trained to zero terminal SNR
PREDICTIONS = {                 # what files say -> what a configuration's `parameterization` says
    "eps": "eps", "epsilon": "eps", "v": "v", "v_prediction": "v", "v-prediction": "v",
    "x0": "x0", "sample": "x0", "stable-diffusion-v2-512": "eps", "stable-diffusion-v2-768-v": "v",
    V_MARK: "v",
}
PREDICTION_KEYS = ("sd.prediction", "modelspec.prediction_type", "modelspec.architecture")

SD = "configs/stable-diffusion/"
CONFIGS = {
    ("1.x", "txt2img"): SD + "v1-inference.yaml",
    ("1.x", "inpaint"): SD + "v1-inpainting-inference.yaml",
    ("1.x", "controlnet"): "configs/controlnet/cldm_v15.yaml",
    ("2.x", "inpaint"): SD + "v2-inpainting-inference.yaml",
    ("2.x", "depth"): SD + "v2-midas-inference.yaml",
    ("2.x", "upscale"): SD + "x4-upscaling.yaml",
    ("2.x", "unclip-h"): SD + "v2-1-stable-unclip-h-inference.yaml",
    ("2.x", "unclip-l"): SD + "v2-1-stable-unclip-l-inference.yaml",
    ("2.x", "controlnet"): "configs/controlnet/cldm_v21.yaml",
}
TEXT_TO_IMAGE_2 = {"eps": SD + "v2-inference.yaml", "v": SD + "v2-inference-v.yaml"}
PUBLISHED_V = (("2.x", "upscale"), ("2.x", "unclip-h"), ("2.x", "unclip-l"))


def classify(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
    configs: Configs | None = None,
) -> Identity:
    """Return what weights of these (dtype, shape) are; nothing but the arguments is looked at.

    Args:
        shapes: of one file, names as stored; of a diffusers folder, "PART/name".
        metadata: what a .safetensors file says of itself.
        configs: part of a diffusers folder -> its config.json.
    """
    metadata, configs = metadata or {}, configs or {}
    shapes = {name: Stored(*x) for name, x in shapes.items()}
    groups, layout = _parts(shapes)
    found = None if "model.diffusion_model.input_blocks.0.0.weight" in shapes else recognise(shapes, metadata)
    if found is None and groups.keys() & {"unet", "ema"}:
        found = recognise(shapes, metadata) if _context_width(groups) not in FAMILIES else None
        found = found if found and found["kind"] == "foreign" else None
    fields = found or _by_parts(groups, shapes, metadata, configs)
    order = sorted(groups, key=lambda part: [*LABELS, part].index(part))
    parts = {LABELS.get(part, part): count for part in order if (count := _count(groups[part]))}
    dtypes: dict[str, int] = {}
    for x in shapes.values():
        dtypes[x.dtype] = dtypes.get(x.dtype, 0) + x.nbytes
    identity = Identity(**({"layout": layout, "parameters": parts, "dtypes": dtypes} | fields))
    return replace(identity, config=config_for(identity))


def of_no_part(names: Iterable[str]) -> list[str]:
    """Return those key names of an LDM file that belong to no part of a model, nor to its noise schedule."""
    names = list(names)
    if not any(map(is_ldm, names)):
        return []
    known = (SCHEDULE.fullmatch, re.compile(f"loss\\..*|{V_MARK}|{ZERO_SNR_MARK}").fullmatch, part_of)
    return [name for name in names if not any(knows(name) for knows in known)]


def config_for(identity: Identity, prediction: str | None = None) -> str | None:
    """Return the reference YAML that describes a model, or None: no SD model, or eps and v both may be."""
    if not identity.is_model or identity.variant == DISTILLED:
        return None
    if identity.family == "2.x" and identity.task == "txt2img":
        return TEXT_TO_IMAGE_2.get(prediction or identity.prediction or "")
    return CONFIGS.get((identity.family, identity.task))


def published_prediction(family: str | None, task: str | None) -> str | None:
    """Return what all reference models of this kind predict; SD 2.x for text-to-image comes in both."""
    if (family, task) in PUBLISHED_V:
        return "v"
    return "eps" if family == "1.x" or (family, task) in CONFIGS else None


def _parts(shapes: Shapes) -> tuple[dict[str, Group], str | None]:
    """Sort tensors by part, under names without the part's prefix, and name the layout."""
    groups: dict[str, Group] = {}
    layouts = set()
    for name, x in shapes.items():
        folder, slash, rest = name.partition("/")
        part = part_of(name)
        if SCHEDULE.fullmatch(name):
            continue
        if slash:
            layouts.add("diffusers")
            groups.setdefault(folder, {})[rest] = x
        elif part is not None and part.name in LABELS and is_ldm(name):
            layouts.add("published")
            where = "discriminator" if name.startswith(DISCRIMINATOR) else part.name
            groups.setdefault(where, {})[name.removeprefix(part.prefix)] = x
    if layouts:
        return groups, layouts.pop() if len(layouts) == 1 else "mixed"
    found = layout_of(shapes)
    if found is None:
        return {"": dict(shapes)}, None
    layout, part = found
    for name, x in shapes.items():
        where = "discriminator" if name.startswith(DISCRIMINATOR) else "ema" if name.startswith(EMA) else part
        groups.setdefault(where, {})[name.removeprefix("diffusion_model.")] = x
    return groups, layout


def _count(group: Group) -> int:
    return sum(x.numel for x in group.values() if "float" in x.dtype)


def _by_parts(
    groups: dict[str, Group], shapes: Shapes, metadata: Mapping[str, str], configs: Configs
) -> dict[str, Any]:
    """Return the fields for a model, or one part of it."""
    held = groups.keys() - {"", "ema", "discriminator", "safety_checker", "image_normalizer", "unused"}
    if "controlnet" in held:
        return _controlnet(groups, shapes, metadata, configs)
    if held & {"unet"} or _has_ema(groups):
        return _model(groups, shapes, metadata, configs)
    for part in ("vae", "text_encoder", "image_encoder", "depth_estimator"):
        if held == {part} or (part == "text_encoder" and held == {"text_encoder", "image_encoder"}):
            family = _text_family(groups[part]) if part == "text_encoder" else None
            return {"kind": part, "family": family, "notes": _vae_notes(groups.get("vae", {}))}
    return {"kind": "unknown"}


def _vae_notes(group: Group) -> list[str]:
    first = group.get("decoder.conv_in.weight")
    channels = first.shape[1] if first and len(first.shape) == 4 else 4
    whose = ", those of SD3 and Flux 16" if channels == 16 else ""
    return [] if channels == 4 else [f"its latents have {channels} channels; those of SD have 4{whose}"]


def _has_ema(groups: dict[str, Group]) -> bool:
    return any(name.startswith("diffusion_model") for name in groups.get("ema", {}))


def _model(
    groups: dict[str, Group], shapes: Shapes, metadata: Mapping[str, str], configs: Configs
) -> dict[str, Any]:
    facts = _unet_facts(groups)
    task = metadata.get("sd.task") or facts["task"]
    fields = {
        "kind": "model" if groups.keys() & {"vae", "text_encoder"} else "unet",
        "family": facts["family"], "task": task, "in_channels": facts["in_channels"],
        "context_width": facts["context_width"], "notes": facts["notes"],
        "weights": _weights(groups, metadata),
        "variant": DISTILLED if facts["family"] and not facts["is_whole"] else None,
    }
    if fields["kind"] == "model":
        needed = {"vae": "VAE"} | ({"text_encoder": "text encoder"} if facts["context_width"] else {})
        fields["lacks"] = [what for part, what in needed.items() if part not in groups]
        theirs = _text_family(groups.get("text_encoder", {}))
        if None not in (theirs, fields["family"]) and theirs != fields["family"]:
            mixed = f"its text encoder is SD {theirs}'s, its UNet SD {fields['family']}'s"
            fields["notes"] = [*fields["notes"], mixed]
    return fields | _prediction(facts["family"], task, shapes, metadata, configs)


def _unet_facts(groups: dict[str, Group], part: str = "unet") -> dict[str, Any]:
    """Return family, task and what tells them."""
    group = groups.get(part) or groups.get("ema", {})
    first = _first_layer(group)
    trunk, channels = (first.shape[0], first.shape[1]) if first else (None, None)
    width = _context_width(groups, part)
    label = next((x.shape[1] for name, x in group.items() if _is_label(name) and len(x.shape) == 2), None)
    family = FAMILIES.get(width) if trunk in TRUNKS.get(FAMILIES.get(width), ()) else None
    task = "unconditional" if first and width is None else CHANNEL_TASKS.get(channels)
    encoder = groups.get("image_encoder")
    if task == "txt2img" and (label in UNCLIP or (label and encoder)):
        has_text = any("transformer.resblocks." in name.partition("visual.")[0] for name in encoder or ())
        task = UNCLIP.get(label, "unclip-l" if has_text else "unclip-h")
    is_whole = len(group) >= WHOLE_UNET or part != "unet"
    notes = []
    if family and not is_whole:
        notes.append(f"its UNet has {len(group)} tensors (reference: 686); it is distilled or incomplete")
    elif width and not family:
        notes.append(f"no reference model has its size: {trunk} channels in the UNet, texts of width {width}")
    return {
        "family": family, "task": task, "in_channels": channels, "context_width": width, "notes": notes,
        "is_whole": is_whole,
    }


def _first_layer(group: Group) -> Stored | None:
    names = ("input_blocks.0.0.weight", "conv_in.weight", "diffusion_modelinput_blocks00weight")
    return next((group[name] for name in names if name in group and len(group[name].shape) == 4), None)


def _is_label(name: str) -> bool:
    return name in (
        "label_emb.0.0.weight", "class_embedding.linear_1.weight", "diffusion_modellabel_emb00weight"
    )


def _context_width(groups: dict[str, Group], part: str = "unet") -> int | None:
    group = groups.get(part) or groups.get("ema", {})
    ends = (".attn2.to_k.weight", "attn2to_kweight")
    return next((x.shape[-1] for name, x in group.items() if name.endswith(ends) and x.shape), None)


def _text_family(group: Group) -> str | None:
    """Return the family of a text encoder by its width."""
    table = next((x for name, x in group.items() if name.endswith("token_embedding.weight")), None)
    return FAMILIES.get(table.shape[-1]) if table is not None and len(table.shape) == 2 else None


def _weights(groups: dict[str, Group], metadata: Mapping[str, str]) -> str:
    said = metadata.get("sd.weights")
    if said in ("raw", "ema", "raw+ema"):
        return said
    if not _has_ema(groups):
        return "raw"
    return "raw+ema" if "unet" in groups else "ema"


def stated_predictions(
    names: Container[str], metadata: Mapping[str, str], configs: Configs
) -> list[tuple[str, str, str]]:
    """Return (source, in which words, eps, v or x0) for each place where weights say what they predict."""
    said: list[tuple[str, str, Any]] = [
        ("metadata", f"metadata {key}", metadata.get(key)) for key in PREDICTION_KEYS
    ]
    said.append(("metadata", "a tensor of the name", V_MARK if V_MARK in names else None))
    scheduler = configs.get("scheduler", {}).get("prediction_type")
    said.append(("scheduler_config", "scheduler_config.json prediction_type", scheduler))
    return [
        (source, f"{where}: {value}", PREDICTIONS[value])
        for source, where, value in said
        if isinstance(value, str) and value in PREDICTIONS
    ]


def _prediction(
    family: str | None, task: str | None, shapes: Shapes, metadata: Mapping[str, str], configs: Configs
) -> dict[str, str | None]:
    """Return eps or v and from where it is known; what a file says goes before what is usual."""
    stated = stated_predictions(shapes, metadata, configs)
    usual = published_prediction(family, task)
    source, prediction = next(
        ((source, value) for source, _, value in stated), ("family" if usual else None, usual)
    )
    known = prediction in ("eps", "v")
    return {"prediction": prediction if known else None, "prediction_source": source if known else None}


def _controlnet(
    groups: dict[str, Group], shapes: Shapes, metadata: Mapping[str, str], configs: Configs
) -> dict[str, Any]:
    facts = _unet_facts(groups, "controlnet")
    whole = "unet" in groups
    variant = DIFFERENCE if DIFFERENCE in shapes else "whole" if whole else "control-only"
    fields = {
        "kind": "controlnet", "family": facts["family"], "task": "controlnet", "variant": variant,
        "in_channels": facts["in_channels"], "context_width": facts["context_width"],
        "weights": _weights(groups, metadata) if whole else "raw",
    }
    return fields | (_prediction(facts["family"], "controlnet", shapes, metadata, configs) if whole else {})
