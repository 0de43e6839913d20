"""The EMA weights's names: made, undone, and put in the place of the raw weights."""

import pytest
import torch
from diffusers_models import noise, same, shapes
from torch import Tensor, nn

from golden_cases import manifest
from ldm.checkpoint.layouts.averaged import COUNTERS, averaged_name, averaged_names, with_averaged_weights
from ldm.models.unet import UNetModel
from ldm.training.ema import LitEma

NAMES = ["v1-inference", "x4-upscaling", "v2-1-stable-unclip-l"]


def file_with_averages() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the raw weights and what the training's own averaging stores of others."""
    unet = UNetModel(
        in_channels=4, model_channels=32, out_channels=4, num_res_blocks=1, attention_resolutions=[1],
        channel_mult=[1, 2], num_heads=4, use_spatial_transformer=True, context_dim=8,
    )  # fmt: skip
    wrapper = nn.ModuleDict({"diffusion_model": unet})
    average = LitEma(wrapper).state_dict()
    return noise(wrapper, "model."), {"model_ema." + name: x for name, x in average.items()}


def test_the_names_are_those_that_training_writes():
    raw, averaged = file_with_averages()
    assert {averaged_name(name) for name in raw} == averaged.keys() - COUNTERS
    assert averaged_name("model.diffusion_model.out.2.bias") == "model_ema.diffusion_modelout2bias"


@pytest.mark.parametrize("layout", NAMES)
def test_no_two_weights_of_a_published_unet_share_an_averaged_name(layout: str):
    raw = [name for name in manifest(layout) if name.startswith("model.")]
    assert len(averaged_names(manifest(layout))) == len(raw) >= 686


def test_the_averaged_copy_takes_the_place_of_the_raw_weights():
    raw, averaged = file_with_averages()
    other = {"first_stage_model.quant_conv.bias": torch.ones(2)}
    got = with_averaged_weights(raw | averaged | other)
    assert shapes(got) == shapes(raw | other)
    assert same(got, other | {name: averaged[averaged_name(name)] for name in raw})


def test_a_file_with_only_the_copy_needs_the_names_of_a_model():
    raw, averaged = file_with_averages()
    assert same(with_averaged_weights(averaged, raw), {name: averaged[averaged_name(name)] for name in raw})
    assert not any(name.startswith("model.") for name in with_averaged_weights(averaged))
