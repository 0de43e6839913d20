"""Configurations of every task at a size that runs in a blink, and models of them with random weights.

The proportions are those of the published models: heads, projections, labels, layers that attend. Text
encoders of the second family take the demonstration model's short vocabulary. "unconditional" has none.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ldm.config import instantiate

ROOT = Path(__file__).resolve().parents[1]
MERGES = ROOT / "configs" / "demo" / "emoji_bpe.txt.gz"
WIDTH = 32
TASKS = ("sd1", "sd2", "sd2-v", "inpaint", "depth", "upscale", "unclip-h", "unclip-l", "controlnet")

TEXT = {"context_length": 12, "vocab_size": 4610, "width": WIDTH, "heads": 2, "layers": 3}
VISION = {"image_size": 28, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 14}
TARGETS = {
    "inpaint": "ldm.models.diffusion.ddpm.LatentInpaintDiffusion",
    "depth": "ldm.models.diffusion.ddpm.LatentDepth2ImageDiffusion",
    "upscale": "ldm.models.diffusion.ddpm.LatentUpscaleDiffusion",
    "unclip-h": "ldm.models.diffusion.ddpm.ImageEmbeddingConditionedLatentDiffusion",
    "unclip-l": "ldm.models.diffusion.ddpm.ImageEmbeddingConditionedLatentDiffusion",
    "controlnet": "cldm.cldm.ControlLDM",
}
KEYS = {"inpaint": "hybrid", "depth": "hybrid", "upscale": "hybrid-adm", "unclip-h": "crossattn-adm",
        "unclip-l": "crossattn-adm"}
V_PREDICTING = ("sd2-v", "upscale", "unclip-h", "unclip-l")
CHANNELS = {"inpaint": 9, "depth": 5, "upscale": 7}


def tiny_config(task: str, folder: Path) -> Path:
    """Write the YAML of a tiny model of `task`, and what it names, into `folder`; return its path."""
    towers = {"embed_dim": WIDTH, "vision_cfg": VISION, "text_cfg": TEXT}
    (folder / "tower.json").write_text(json.dumps(towers))
    (folder / "openai.json").write_text(json.dumps({**towers, "quick_gelu": True}))
    statistics = {"mean": torch.linspace(-1, 1, WIDTH), "std": torch.linspace(0.5, 2, WIDTH)}
    save_file(statistics, folder / "statistics.safetensors")
    file = folder / f"{task}.yaml"
    file.write_text(json.dumps({"model": _model(task, folder)}))      # JSON is YAML
    return file


def tiny_model(config: Path, seed: int = 0) -> nn.Module:
    """Build the model of `config` with random weights, none of them zero."""
    from ldm.config import load_config

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = instantiate(load_config(config).model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_scale = parameter.ndim < 2 and name.endswith("weight")
                scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
                parameter.copy_(scale * torch.randn_like(parameter) + is_scale)
    return model.eval().requires_grad_(False)


def _model(task: str, folder: Path) -> dict[str, Any]:
    params: dict[str, Any] = {
        "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "image_size": 8, "channels": 4,
        "conditioning_key": KEYS.get(task, "crossattn"), "scale_factor": 0.18215, "use_ema": False,
        "unet_config": _unet(task), "first_stage_config": _autoencoder(),
        "cond_stage_config": _text(task, folder),
    }
    if task in V_PREDICTING:
        params["parameterization"] = "v"
    if task == "upscale":
        params |= {"linear_start": 1e-4, "linear_end": 0.02, "scale_factor": 0.08333}
        params["low_scale_config"] = {
            "target": "ldm.modules.diffusionmodules.upscaling.ImageConcatWithNoiseAugmentation",
            "params": {
                "noise_schedule_config": {"linear_start": 1e-4, "linear_end": 0.02}, "max_noise_level": 350
            },
        }
    if task.startswith("unclip"):
        name = "FrozenOpenCLIPImageEmbedder" if task == "unclip-h" else "ClipImageEmbedder"
        key, file = ("arch", "tower.json") if task == "unclip-h" else ("model", "openai.json")
        target = f"ldm.modules.encoders.modules.{name}"
        params["embedder_config"] = {"target": target, "params": {key: str(folder / file)}}
        schedule = {"timesteps": 1000, "beta_schedule": "squaredcos_cap_v2"}
        params["noise_aug_config"] = {
            "target": "ldm.modules.encoders.modules.CLIPEmbeddingNoiseAugmentation",
            "params": {"timestep_dim": WIDTH, "noise_schedule_config": schedule},
        }
        if task == "unclip-l":
            params["noise_aug_config"]["params"]["clip_stats_path"] = str(folder / "statistics.safetensors")
    if task == "depth":
        params["depth_stage_config"] = None
    if task == "unconditional":
        del params["conditioning_key"]
        params["cond_stage_config"] = "__is_unconditional__"
        for key in ("transformer_depth", "use_spatial_transformer", "context_dim", "legacy"):
            del params["unet_config"]["params"][key]
    if task == "controlnet":
        control = {key: value for key, value in _unet("sd1")["params"].items() if key != "out_channels"}
        control["hint_channels"] = 3
        params["control_stage_config"] = {"target": "cldm.cldm.ControlNet", "params": control}
    return {"target": TARGETS.get(task, "ldm.models.diffusion.ddpm.LatentDiffusion"), "params": params}


def _unet(task: str) -> dict[str, Any]:
    params: dict[str, Any] = {
        "image_size": 8, "in_channels": CHANNELS.get(task, 4), "out_channels": 4, "model_channels": WIDTH,
        "attention_resolutions": [2, 1], "num_res_blocks": 1, "channel_mult": [1, 2, 2],
        "transformer_depth": 1, "use_spatial_transformer": True, "context_dim": WIDTH, "legacy": False,
    }
    if task in ("sd1", "controlnet", "upscale"):
        params["num_heads"] = 4
    else:
        params["num_head_channels"] = 16
    if task not in ("sd1", "controlnet"):
        params["use_linear_in_transformer"] = True
    if task == "upscale":
        params |= {"attention_resolutions": [2, 4], "disable_self_attentions": [True, True, False],
                   "num_classes": 1000}
    if task.startswith("unclip"):
        params |= {"num_classes": "sequential", "adm_in_channels": 2 * WIDTH}
    target = "cldm.cldm.ControlledUnetModel" if task == "controlnet" else (
        "ldm.modules.diffusionmodules.openaimodel.UNetModel"
    )
    return {"target": target, "params": params}


def _autoencoder() -> dict[str, Any]:
    settings = {
        "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 16,
        "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [], "num_groups": 4,
    }
    params = {"embed_dim": 4, "ddconfig": settings}
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


def _text(task: str, folder: Path) -> dict[str, Any]:
    if task in ("sd1", "controlnet"):
        sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 2}
        target = "ldm.modules.encoders.modules.FrozenCLIPEmbedder"
        return {"target": target, "params": {"text_config": sizes}}
    return {
        "target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
        "params": {"arch": str(folder / "tower.json"), "bpe_path": str(MERGES), "layer": "penultimate"},
    }
