"""The sentence in a refusal must name the right thing."""

import pytest

from golden_cases import manifest
from ldm.checkpoint.guess import guess

UNCLIP = "SD 2.x for text-to-image (4 input channels) with image-embedding conditioning (unCLIP)"
PUBLISHED = {
    "v1-inference": "SD 1.x for text-to-image (4 input channels)",
    "v2-inference": "SD 2.x for text-to-image (4 input channels)",
    "v2-inference-v": "SD 2.x for text-to-image (4 input channels)",
    "v2-inpainting": "SD 2.x for inpainting (9 input channels)",
    "v2-midas": "SD 2.x for depth-to-image (5 input channels)",
    "x4-upscaling": "SD 2.x for x4 upscaling (7 input channels)",
    "v2-1-stable-unclip-h": UNCLIP,
    "v2-1-stable-unclip-l": UNCLIP,
    "cldm_v15": "a ControlNet",
    "cldm_v21": "a ControlNet",
}


@pytest.mark.parametrize("layout, expected", PUBLISHED.items(), ids=PUBLISHED)
def test_published_layouts(layout, expected):
    assert guess({name: shape for name, (shape, _) in manifest(layout).items()}) == expected


def test_parts_that_are_not_there_are_named():
    shapes = {name: shape for name, (shape, _) in manifest("v1-inference").items()}
    only_unet = {name: shape for name, shape in shapes.items() if name.startswith("model.")}
    assert guess(only_unet) == "SD 1.x for text-to-image (4 input channels) without VAE without text encoder"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight", "a LoRA, no model"),
        ("unet.down_blocks.0.attentions.0.attn1.to_k.lora_A.weight", "a LoRA, no model"),
        ("lycoris_unet_x.hada_w1_a", "a LyCORIS, no model"),
        ("down_blocks.0.attentions.0.norm.weight", "a UNet in the diffusers layout"),
        ("decoder.up_blocks.0.resnets.0.conv1.weight", "an autoencoder in the diffusers layout"),
        ("encoder.down.0.block.0.conv1.weight", "an autoencoder alone"),
        ("text_model.encoder.layers.0.mlp.fc1.bias", "a CLIP text encoder alone"),
        ("input_blocks.0.0.weight", "a UNet alone"),
        ("emb_params", "a textual-inversion embedding"),
        ("conditioner.embedders.0.x", "an SDXL model"),
        ("model.diffusion_model.double_blocks.0.x", "an SD3 or Flux model"),
        ("model_ema.diffusion_modelinput_blocks00weight", "an EMA copy without the weights proper"),
        ("anything", "no diffusion model"),
    ],
)
def test_files_that_are_no_model(name, expected):
    assert guess({name: (4, 4)}) == expected
