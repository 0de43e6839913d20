"""Every published checkpoint layout: the model of its YAML has the keys and shapes of the published file.

Models are built on the meta device, at full size, in no memory.
"""

import functools

import pytest
import torch
from torch import nn

from golden_cases import manifest
from ldm.config import instantiate, load_config

# manifest -> the configurations whose model has this layout
BUILT = {
    "v2-inference": [
        "stable-diffusion/v2-inference.yaml",
        "stable-diffusion/intel/v2-inference-fp32.yaml",
        "stable-diffusion/intel/v2-inference-bf16.yaml",
    ],
    "v2-inference-v": [
        "stable-diffusion/v2-inference-v.yaml",
        "stable-diffusion/intel/v2-inference-v-fp32.yaml",
        "stable-diffusion/intel/v2-inference-v-bf16.yaml",
    ],
    "v1-inference": ["stable-diffusion/v1-inference.yaml"],
    "v2-inpainting": ["stable-diffusion/v2-inpainting-inference.yaml"],
    "v2-midas": ["stable-diffusion/v2-midas-inference.yaml"],
    "x4-upscaling": ["stable-diffusion/x4-upscaling.yaml"],
    "v2-1-stable-unclip-h": ["stable-diffusion/v2-1-stable-unclip-h-inference.yaml"],
    "v2-1-stable-unclip-l": ["stable-diffusion/v2-1-stable-unclip-l-inference.yaml"],
    "cldm_v15": ["controlnet/cldm_v15.yaml", "controlnet/cldm_v15_avg_pool.yaml"],
    "cldm_v21": ["controlnet/cldm_v21.yaml"],
}

# Parameters as published for the UNet, the autoencoder and the text encoder, and for what else there is.
SD1, SD2, VAE = 123_060_480, 354_032_641, 83_653_863
PARAMETERS = {
    "v2-inference": (865_910_724, VAE, SD2, {}),
    "v2-inference-v": (865_910_724, VAE, SD2, {}),
    "v1-inference": (859_520_964, VAE, SD1, {}),
    "v2-inpainting": (865_925_124, VAE, SD2, {}),
    "v2-midas": (865_913_604, VAE, SD2, {"depth_model": 123_146_985}),
    "x4-upscaling": (473_398_020, 55_325_927, SD2, {"low_scale_model": 0}),
    "v2-1-stable-unclip-h": (870_173_124, VAE, SD2, {"embedder": 683_800_065, "noise_augmentor": 0}),
    "v2-1-stable-unclip-l": (869_517_764, VAE, SD2, {"embedder": 427_616_513, "noise_augmentor": 0}),
    "cldm_v15": (859_520_964, VAE, SD1, {"control_model": 361_279_120}),
    "cldm_v21": (865_910_724, VAE, SD2, {"control_model": 364_228_240}),
}


@functools.cache
def build(config: str) -> nn.Module:
    with torch.device("meta"):
        return instantiate(load_config(f"configs/{config}").model)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layout(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        key: (tuple(x.shape), str(x.dtype).removeprefix("torch.")) for key, x in model.state_dict().items()
    }


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param(name, config, marks=[pytest.mark.slow] if config != configs[0] else [])
        for name, configs in BUILT.items()
        for config in configs
    ],
)
def test_keys_and_shapes_are_the_published_ones(name: str, config: str):
    ours, published = layout(build(config)), manifest(name)
    assert sorted(published.keys() - ours.keys()) == [], "keys of the published file that the model lacks"
    assert sorted(ours.keys() - published.keys()) == [], "keys that no published file has"
    different = {key: (ours[key], published[key]) for key in published if ours[key] != published[key]}
    assert different == {}


@pytest.mark.parametrize("name", BUILT)
def test_parameter_counts_are_the_published_ones(name: str):
    model = build(BUILT[name][0])
    *common, others = PARAMETERS[name]
    parts = (model.model.diffusion_model, model.first_stage_model, model.cond_stage_model)
    assert [parameters(part) for part in parts] == common
    assert {part: parameters(getattr(model, part)) for part in others} == others
    assert parameters(model) == sum(common) + sum(others.values())


def test_the_inpainting_model_of_sd1_is_sd1_with_nine_input_channels():
    """No manifest was made of it; its file is told from SD 1.x by this one shape."""
    ours, sd1 = layout(build("stable-diffusion/v1-inpainting-inference.yaml")), manifest("v1-inference")
    different = {key: ours.get(key) for key in ours.keys() | sd1.keys() if ours.get(key) != sd1.get(key)}
    assert different == {"model.diffusion_model.input_blocks.0.0.weight": ((320, 9, 3, 3), "float32")}


def test_the_middle_of_a_controlnet_stands_where_published_files_have_it():
    ours = list(layout(build("controlnet/cldm_v15.yaml")))
    assert ours == list(manifest("cldm_v15"))


def test_the_order_of_keys_is_the_published_order_within_the_unet():
    """Files are matched by name; a stable order keeps optimiser states and diffs of two files readable."""
    ours = [key for key in layout(build(BUILT["v2-inference"][0])) if key.startswith("model.")]
    assert ours[0] == "model.diffusion_model.time_embed.0.weight"
    assert ours[-1] == "model.diffusion_model.out.2.bias"


def test_every_manifest_has_its_configuration():
    from golden_cases import GOLDEN

    names = {
        path.name.removeprefix("manifest_").split(".json")[0] for path in (GOLDEN / "manifests").glob("*.gz")
    }
    assert names == BUILT.keys() == PARAMETERS.keys()
