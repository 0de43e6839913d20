"""Configurations small enough to train in a second."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
BPE = str(REPOSITORY / "configs" / "demo" / "emoji_bpe.txt.gz")
ARCH = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 4610, "width": 16, "heads": 2, "layers": 2},
}
AUTOENCODER = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "ddconfig": {
            "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "num_groups": 4, "attn_resolutions": [],
            "in_channels": 3, "out_ch": 3, "resolution": 16, "z_channels": 4,
        },
    },
}
UNET = {
    "target": "ldm.models.unet.UNetModel",
    "params": {
        "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1],
        "num_res_blocks": 1, "attention_resolutions": [1], "num_head_channels": 16,
        "use_spatial_transformer": True, "use_linear_in_transformer": True, "transformer_depth": 1,
        "context_dim": 16, "legacy": False,
    },
}
TRAIN = {
    "batch_size": 4, "max_steps": 3, "learning_rate": 1e-3,
    "log_every": 1, "sample_every": 0, "save_every": 100, "accelerator": "cpu",
}
DATA = {"target": "demo.discs.Discs", "params": {"size": 16}}


@pytest.fixture
def arch(tmp_path) -> str:
    """The path of a tiny open_clip architecture."""
    path = tmp_path / "tiny-clip.json"
    path.write_text(json.dumps(ARCH))
    return str(path)


@pytest.fixture
def config(arch):
    """Return a function: config("diffusion", {"ema_decay": 0.9}, max_steps=5) -> a training configuration."""
    text = {
        "target": "ldm.models.text_openclip.FrozenOpenCLIPEmbedder",
        "params": {"arch": arch, "bpe_path": BPE, "layer": "penultimate"},
    }
    diffusion = {
        "target": "ldm.models.latent_diffusion.LatentDiffusion",
        "params": {
            "parameterization": "v", "linear_start": 0.00085, "linear_end": 0.012,
            "image_size": 8, "channels": 4, "conditioning_key": "crossattn", "use_ema": False,
            "unet_config": UNET, "first_stage_config": AUTOENCODER, "cond_stage_config": text,
        },
    }
    models = {"autoencoder": AUTOENCODER, "diffusion": diffusion, "control": diffusion, "clip": text}

    def make(method: str, options: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
        made = {"model": models[method], "data": DATA, "train": {**TRAIN, **train}, method: options or {}}
        return copy.deepcopy(made)

    return make


def parameters_of(state: Any, path: str = "") -> dict[str, Any]:
    """Return nested dicts and lists as one dict of leaves."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        return {path: state}
    found = {}
    for key, value in items:
        found |= parameters_of(value, f"{path}/{key}")
    return found


@pytest.fixture
def leaves():
    return parameters_of
