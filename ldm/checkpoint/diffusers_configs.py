"""Say in diffusers' words what a configuration describes: the JSON files of a diffusers folder.

One function a part, from the `params` of a reference YAML to the part's config.json. What is the same for all
models stands in diffusers_files.json, and here what depends on the model. The YAML's `linear`
schedule is linear in sqrt(beta), which diffusers calls scaled_linear; a UNet's `attention_head_dim` there is
the number of heads. What diffusers has no word for is refused, so that no folder runs as another model.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from ldm.clip_files import VIT_L_14, architecture
from ldm.errors import ConfigError
from ldm.prompts.tokenizer import Tokenizer

Params = dict[str, Any]
Json = dict[str, Any]

DIFFUSERS_VERSION = "0.30.0"      # the oldest that reads what is written here
BETA_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2",
                  "squaredcos_cap_v2": "squaredcos_cap_v2"}
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
TRAINED_AT_96 = {"parameterization": "v", "image_size": 64}     # SD 2.x for 768 pixels; its YAML says 64
# Its `torch_dtype` is for transformers 5, which would load half precision as it is stored, while diffusers
# loads the other parts as float32.
FIXED: dict[str, Json] = json.loads(Path(__file__).with_name("diffusers_files.json").read_text("utf-8"))
# The parts that the constructor of every pipeline names; FIXED["pipelines"] has the further ones of each.
ALWAYS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
# A key of the YAML -> its pipeline; for the others the channels that join the latents decide.
BY_KEY = {
    "embedder_config": "StableUnCLIPImg2ImgPipeline",
    "depth_stage_config": "StableDiffusionDepth2ImgPipeline",
    "low_scale_config": "StableDiffusionUpscalePipeline",
}
BY_EXTRA_CHANNELS = {
    0: "StableDiffusionPipeline",
    5: "StableDiffusionInpaintPipeline",
    4: "StableDiffusionInstructPix2PixPipeline",
}


def unet(model: Params) -> Json:
    """Return unet/config.json for the `params` of the `model` node."""
    params = params_of(model, "unet_config")
    _refuse(params, "unet_config", conv_resample=True, resblock_updown=False, dropout=0.0)
    side = model.get("image_size", 64)
    is_sd_2 = params.get("context_dim") == 1024 and params["model_channels"] == 320
    if is_sd_2 and TRAINED_AT_96.items() <= model.items():
        side = 96
    config = {
        **_fixed("unet"), **_encoder(params), "sample_size": side, "out_channels": params["out_channels"],
        "up_block_types": [
            "CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(_attention(params))
        ],
    }
    num_classes = params.get("num_classes")
    if num_classes == "sequential":
        config["class_embed_type"] = "projection"
        config["projection_class_embeddings_input_dim"] = params["adm_in_channels"]
    elif isinstance(num_classes, int):
        config["num_class_embeds"] = num_classes
    elif num_classes is not None:
        raise _inexpressible("unet_config.num_classes", num_classes)
    return config


def controlnet(model: Params) -> Json:
    """Return controlnet/config.json."""
    params = params_of(model, "control_stage_config")
    return {
        **_fixed("controlnet"), **_encoder(params), "conditioning_channels": params["hint_channels"],
        "global_pool_conditions": bool(model.get("global_average_pooling", False)),
    }


def _encoder(params: Params) -> Json:
    """Return what a UNet and a ControlNet share: the way down and the middle."""
    _refuse(params, "unet_config", use_spatial_transformer=True, num_attention_blocks=None)
    channels, multipliers = params["model_channels"], params["channel_mult"]
    widths = [int(channels * multiplier) for multiplier in multipliers]
    only_cross = params.get("disable_self_attentions") or [False] * len(widths)
    head_dim = params.get("num_head_channels", -1)
    heads = params["num_heads"] if head_dim == -1 else [width // head_dim for width in widths]
    linear = params.get("use_linear_in_transformer", False)
    return {
        **FIXED["encoder"], "in_channels": params["in_channels"],
        "down_block_types": [
            "CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in _attention(params)
        ],
        "only_cross_attention": only_cross if any(only_cross) else False,
        "block_out_channels": widths, "layers_per_block": params["num_res_blocks"],
        "cross_attention_dim": params["context_dim"],
        "transformer_layers_per_block": params.get("transformer_depth", 1),
        "attention_head_dim": heads, "use_linear_projection": linear,
        "upcast_attention": linear,     # SD 2.x needs its attention scores in float32
        "resnet_time_scale_shift": "scale_shift" if params.get("use_scale_shift_norm") else "default",
    }


def _attention(params: Params) -> list[bool]:
    """Tell for each level whether it attends."""
    return [2**level in params["attention_resolutions"] for level in range(len(params["channel_mult"]))]


def vae(model: Params) -> Json:
    """Return vae/config.json."""
    params = params_of(model, "first_stage_config")
    settings = params["ddconfig"]
    _refuse(settings, "ddconfig", attn_resolutions=[], z_channels=params["embed_dim"])
    widths = [settings["ch"] * mult for mult in settings["ch_mult"]]
    config = {
        **_fixed("vae"), "in_channels": settings["in_channels"], "out_channels": settings["out_ch"],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths, "layers_per_block": settings["num_res_blocks"],
        "latent_channels": params["embed_dim"], "norm_num_groups": settings.get("num_groups", 32),
        "sample_size": model.get("image_size", 64) * 2 ** (len(widths) - 1),
        "scaling_factor": model.get("scale_factor", 1.0),
    }
    if settings.get("attn_type") == "none":
        config["mid_block_add_attention"] = False
    return config


def text_encoder(model: Params) -> Json:
    """Return text_encoder/config.json; of an OpenCLIP tower without the blocks that its layer leaves out."""
    params = params_of(model, "cond_stage_config")
    tokens = tokenizer_of(model)
    config = {
        **FIXED["text_encoder"], "bos_token_id": tokens.sot_token_id, "eos_token_id": tokens.eot_token_id,
        "pad_token_id": 0 if is_openclip(model) else tokens.eot_token_id,
    }
    if not is_openclip(model):
        _refuse(params, "cond_stage_config", layer="last")
        sizes = {**VIT_L_14, **(params.get("text_config") or {})}
        return {**config, **sizes, "projection_dim": sizes["hidden_size"]}
    tower = architecture(params.get("arch", "ViT-H-14"))
    text = tower["text_cfg"]
    _refuse(params, "cond_stage_config", "last", layer="penultimate")
    return {
        **config, **_clip_sizes(text, tower), "vocab_size": text.get("vocab_size", 49408),
        "max_position_embeddings": text.get("context_length", 77), "num_hidden_layers": text["layers"] - 1,
        "num_attention_heads": text["heads"],
    }


def _clip_sizes(node: Json, tower: Json) -> Json:
    """Return what the two towers of an open_clip description say alike."""
    return {
        "hidden_size": node["width"], "intermediate_size": int(node["width"] * node.get("mlp_ratio", 4)),
        "projection_dim": tower["embed_dim"],
        "hidden_act": "quick_gelu" if tower.get("quick_gelu") else "gelu",
    }


def image_encoder(model: Params) -> Json:
    """Return image_encoder/config.json of an unCLIP model."""
    params = params_of(model, "embedder_config")
    if class_of(model["embedder_config"]) == "ClipImageEmbedder":       # OpenAI's names and activation
        name = params.get("model", "ViT-L/14")
        arch = name if name.endswith(".json") else name.replace("/", "-") + "-quickgelu"
    else:
        arch = params.get("arch", "ViT-H-14")
    tower = architecture(arch)
    vision = tower["vision_cfg"]
    return {
        **FIXED["image_encoder"], **_clip_sizes(vision, tower),
        "image_size": vision.get("image_size", 224), "patch_size": vision["patch_size"],
        "num_hidden_layers": vision["layers"],
        "num_attention_heads": vision["width"] // vision.get("head_width", 64),
    }


def image_normalizer(model: Params) -> Json:
    """Return image_normalizer/config.json of an unCLIP model."""
    params = params_of(model, "noise_aug_config")
    return {**_fixed("image_normalizer"), "embedding_dim": params["timestep_dim"]}


def depth_estimator(model: Params) -> Json:
    """Return depth_estimator/config.json: DPT-hybrid, a ResNet of three stages before a ViT-B/16."""
    return dict(FIXED["depth_estimator"])


def scheduler(model: Params) -> Json:
    """Return scheduler/scheduler_config.json: DDIM on the reference time steps."""
    prediction = model.get("parameterization", "eps")
    return {**_fixed("scheduler"), **_betas(model), "prediction_type": PREDICTION_TYPES[prediction]}


def low_res_scheduler(model: Params) -> Json:
    """Return low_res_scheduler/scheduler_config.json of the upscaler: the noise added to its image."""
    return _ddpm(params_of(model, "low_scale_config"))


def image_noising_scheduler(model: Params) -> Json:
    """Return image_noising_scheduler/scheduler_config.json of unCLIP: the noise put on its embedding."""
    return _ddpm(params_of(model, "noise_aug_config"))


def _ddpm(params: Params) -> Json:
    return {**_fixed("noise_scheduler"), **_betas(params.get("noise_schedule_config") or {})}


def _betas(params: Params) -> Json:
    name = params.get("beta_schedule", "linear")
    if name not in BETA_SCHEDULES:
        raise _inexpressible("beta_schedule", name)
    if name == "cosine":
        _refuse(params, "model", cosine_s=8e-3)
    return {
        "num_train_timesteps": params.get("timesteps", 1000),
        "beta_start": params.get("linear_start", 1e-4), "beta_end": params.get("linear_end", 2e-2),
        "beta_schedule": BETA_SCHEDULES[name],
    }


def pipeline(model: Params, parts: Iterable[str]) -> str:
    """Return the class of diffusers that runs a model with these parts."""
    if "controlnet" in parts:
        return "StableDiffusionControlNetPipeline"
    for key, name in BY_KEY.items():
        if key in model:
            return name
    channels = params_of(model, "unet_config")["in_channels"]
    extra = channels - model.get("channels", 4)
    if extra not in BY_EXTRA_CHANNELS:
        raise _inexpressible("unet_config.in_channels", channels)
    return BY_EXTRA_CHANNELS[extra]


def model_index(model: Params, parts: Iterable[str]) -> Json:
    """Return model_index.json: the class of the pipeline and of each folder; those not there are null."""
    name = pipeline(model, parts)
    index: Json = {"_class_name": name, "_diffusers_version": DIFFUSERS_VERSION}
    extractor = feature_extractor(model)
    classes = dict(FIXED["classes"])
    if extractor is not None:
        classes["feature_extractor"] = ["transformers", extractor["image_processor_type"]]
    for part in (*ALWAYS, *FIXED["pipelines"][name]):
        index[part] = classes[part] if part in parts else [None, None]
    if "safety_checker" in index and "watermarker" not in index:
        index["requires_safety_checker"] = False
    if "low_scale_config" in model:
        index["max_noise_level"] = params_of(model, "low_scale_config").get("max_noise_level", 1000)
    return index


def feature_extractor(model: Params) -> Json | None:
    """Return feature_extractor/preprocessor_config.json for the models that take an image."""
    if "embedder_config" in model:
        side = image_encoder(model)["image_size"]
        sizes = {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
        return {**FIXED["CLIPImageProcessor"], **sizes, "rescale_factor": 1 / 255}
    if "depth_stage_config" in model:
        return {**FIXED["DPTImageProcessor"], "rescale_factor": 1 / 255}
    return None


def tokenizer_files(model: Params) -> dict[str, str]:
    """Return the text of each file of tokenizer/, made from the merges that open_clip or the YAML gives.

    SD 2.x pads with token 0, which is "!": as with the reference folders, transformers reads a "!" of a
    prompt as padding.
    """
    tokens = tokenizer_of(model)
    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = {
        {tokens.sot_token_id: start, tokens.eot_token_id: end}.get(i, token): i
        for token, i in tokens.encoder.items()
    }
    special = {"bos_token": start, "eos_token": end, "unk_token": end,
               "pad_token": "!" if is_openclip(model) else end}
    length = text_encoder(model)["max_position_embeddings"]
    settings = {**FIXED["tokenizer"], **special, "model_max_length": length}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{' '.join(pair)}\n" for pair in tokens.merges),
        "tokenizer_config.json": json_text(settings),
        "special_tokens_map.json": json_text(special),
    }


def tokenizer_of(model: Params) -> Tokenizer:
    """Return CLIP's tokenizer with the merges of the model's text encoder."""
    return _tokenizer(params_of(model, "cond_stage_config").get("bpe_path"))


_tokenizer = cache(Tokenizer)


def is_openclip(model: Params) -> bool:
    """Tell whether the text encoder is SD 2.x's."""
    name = class_of(model["cond_stage_config"])
    if name not in ("FrozenOpenCLIPEmbedder", "FrozenCLIPEmbedder"):
        raise _inexpressible("cond_stage_config.target", name)
    return name == "FrozenOpenCLIPEmbedder"


def class_of(node: Json) -> str:
    """Return the bare class name of a node, the same for the reference's and for today's targets."""
    return node["target"].rpartition(".")[2]


def params_of(model: Params, key: str) -> Params:
    """Return the params of a node inside the `model` node's params."""
    if key not in model:
        raise ConfigError(f"the configuration has no {key}, but the weights have that part; expected one "
                          "that describes all parts of the file: --config YAML")
    return model[key].get("params") or {}


def _fixed(part: str) -> Json:
    """Return what every config.json of a part of diffusers itself says."""
    return {**FIXED[part], "_diffusers_version": DIFFUSERS_VERSION}


def json_text(content: Json) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _refuse(params: Params, where: str, default: Any = None, /, **allowed: Any) -> None:
    """Raise unless each of `allowed` is absent (and means that value, or `default`) or has that value."""
    for key, value in allowed.items():
        got = params.get(key, value if default is None else default)
        if got != value:
            raise _inexpressible(f"{where}.{key}", got)


def _inexpressible(what: str, got: Any) -> ConfigError:
    return ConfigError(f"{what} is {got!r}, which diffusers cannot express; such a model stays in one file")
