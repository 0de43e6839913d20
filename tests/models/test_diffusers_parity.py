"""Each network against diffusers' and transformers' own, with the same random weights under converted names.

An independent second witness beside the golden cases, and one that can take any size: the published settings
of each family (heads, projections, levels, labels) at a small width.
"""

import json
from pathlib import Path
from typing import Any

import diffusers_models
import pytest
import torch
from torch import Tensor, nn

from ldm.checkpoint.layouts import ldm_to_parts
from ldm.checkpoint.parts import PARTS
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.controlnet import ControlNet
from ldm.models.text_clip import FrozenCLIPEmbedder
from ldm.models.text_openclip import FrozenOpenCLIPEmbedder
from ldm.models.unet import UNetModel

CLOSE = dict(atol=2e-5, rtol=1e-4)
FOUR_LEVELS = dict(
    in_channels=4,
    model_channels=32,
    num_res_blocks=2,
    attention_resolutions=[4, 2, 1],
    channel_mult=[1, 2, 4, 4],
    use_spatial_transformer=True,
    legacy=False,
    context_dim=40,
)
SD1 = dict(FOUR_LEVELS, num_heads=4)
SD2 = dict(FOUR_LEVELS, num_head_channels=16, use_linear_in_transformer=True)
THEIR_SIZES = dict(block_out_channels=(32, 64, 128, 128), layers_per_block=2, cross_attention_dim=40)
# diffusers calls the number of heads attention_head_dim
THEIR_SD1 = dict(THEIR_SIZES, attention_head_dim=4)
THEIR_SD2 = dict(THEIR_SIZES, attention_head_dim=(2, 4, 8, 8), use_linear_projection=True)
UNETS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd1": (SD1, THEIR_SD1),
    "sd2": (SD2, THEIR_SD2),
    "inpaint": (dict(SD2, in_channels=9), dict(THEIR_SD2, in_channels=9)),
    "upscaler": (
        dict(
            SD2, in_channels=7, attention_resolutions=[2, 4, 8], num_classes=10,
            disable_self_attentions=[True, True, True, False],
        ),
        dict(
            THEIR_SD2, in_channels=7, num_class_embeds=10, only_cross_attention=(True, True, True, False),
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
            up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
        ),
    ),
    "unclip": (
        dict(SD2, num_classes="sequential", adm_in_channels=12),
        dict(THEIR_SD2, class_embed_type="projection", projection_class_embeddings_input_dim=12),
    ),
    "continuous label": (
        dict(SD1, num_classes="continuous"),
        dict(THEIR_SD1, class_embed_type="simple_projection", projection_class_embeddings_input_dim=1),
    ),
    "uneven": (
        dict(SD1, num_res_blocks=[1, 3], channel_mult=[1, 3], transformer_depth=2, attention_resolutions=[2]),
        dict(
            THEIR_SD1, block_out_channels=(32, 96), layers_per_block=(1, 3), transformer_layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
    ),
}  # fmt: skip


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter noise, the zero-initialised ones too, so that nothing is switched off."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 0:
                continue                        # logit_scale, which only training reads
            scale = 0.3 if name.endswith("bias") else parameter[:1].numel() ** -0.5
            parameter.copy_(
                scale * torch.randn_like(parameter) + ("norm" in name and name.endswith("weight"))
            )
    return module.eval()


def converted(module: nn.Module, part: str) -> dict[str, Tensor]:
    """Return the weights of one of our modules under diffusers' names."""
    prefix = PARTS[part].prefix
    return ldm_to_parts({prefix + name: x for name, x in module.state_dict().items()})[part]


@pytest.mark.few(1)
@pytest.mark.parametrize("variant", UNETS)
def test_unet_equals_diffusers(variant: str):
    settings, theirs_settings = UNETS[variant]
    ours = randomised(UNetModel(out_channels=4, **settings))
    theirs = diffusers_models.unet(theirs_settings).eval()
    theirs.load_state_dict(converted(ours, "unet"), strict=True)

    x, t = torch.randn(2, settings["in_channels"], 16, 24), torch.tensor([0, 981])
    context = torch.randn(2, 11, 40)
    labels = {"sequential": torch.randn(2, 12), "continuous": torch.rand(2, 1)}
    y = labels.get(settings.get("num_classes"), torch.tensor([0, 9]) if "num_classes" in settings else None)
    with torch.no_grad():
        expected = theirs(x, t, context, class_labels=y).sample
        torch.testing.assert_close(ours(x, t, context=context, y=y), expected, **CLOSE)


@pytest.mark.parametrize("variant", ["sd1", "sd2"])
def test_controlnet_equals_diffusers(variant: str):
    settings, theirs_settings = UNETS[variant]
    ours = randomised(ControlNet(hint_channels=3, **settings))
    theirs = diffusers_models.controlnet(theirs_settings).eval()
    theirs.load_state_dict(converted(ours, "controlnet"), strict=True)

    x, t, hint = torch.randn(2, 4, 8, 16), torch.tensor([1, 640]), torch.rand(2, 3, 64, 128)
    context = torch.randn(2, 11, 40)
    with torch.no_grad():
        down, middle = theirs(x, t, context, hint, return_dict=False)
        for control, expected in zip(ours(x, hint, t, context), [*down, middle], strict=True):
            torch.testing.assert_close(control, expected, **CLOSE)


@pytest.mark.parametrize("mult", [[1, 2, 4, 4], [1, 2, 4]], ids=["f8", "f4"])
def test_autoencoder_equals_diffusers(mult: list[int]):
    ddconfig = dict(
        double_z=True, z_channels=4, resolution=64, in_channels=3, out_ch=3, ch=32, ch_mult=mult,
        num_res_blocks=2, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    ours = randomised(AutoencoderKL(ddconfig, embed_dim=4))
    theirs = diffusers_models.vae(tuple(32 * m for m in mult)).eval()
    theirs.load_state_dict(converted(ours, "vae"), strict=True)

    image, z = torch.randn(2, 3, 32, 48), torch.randn(2, 4, 4, 6)
    with torch.no_grad():
        posterior, expected = ours.encode(image), theirs.encode(image).latent_dist
        torch.testing.assert_close(posterior.mean, expected.mean, **CLOSE)
        torch.testing.assert_close(posterior.logvar, expected.logvar, **CLOSE)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, **CLOSE)


def load_text(theirs: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    if "text_model.final_layer_norm.weight" not in theirs.state_dict():     # newer releases nest less
        weights = {name.removeprefix("text_model."): x for name, x in weights.items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing)
    return theirs.eval()


def test_clip_text_encoder_equals_transformers():
    sizes = dict(
        vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4
    )
    ours = randomised(FrozenCLIPEmbedder(text_config=sizes))
    theirs = diffusers_models.text_encoder({**sizes, "eos_token_id": 499, "bos_token_id": 498})
    load_text(theirs, converted(ours, "text_encoder"))

    ids = torch.randint(0, 498, (2, 77))
    ids[:, 20] = 499
    seen = torch.ones_like(ids)
    seen[:, 30:40] = 0
    order = torch.arange(77).flip(0)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_tokens(ids), theirs(ids).last_hidden_state, **CLOSE)
        for options in ({}, {"attention_mask": seen}, {"position_ids": order}):
            options |= {"input_ids": ids, "output_hidden_states": True}
            got, expected = ours.transformer(**options), theirs(**options)
            torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, **CLOSE)
            torch.testing.assert_close(got.pooler_output, expected.pooler_output, **CLOSE)
            assert len(got.hidden_states) == len(expected.hidden_states) == 4
            for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
                torch.testing.assert_close(a, b, **CLOSE)
            assert got[0] is got["last_hidden_state"] is got.last_hidden_state
            assert got[1] is got.pooler_output and got[2] is got.hidden_states
        plain = ours.transformer(input_ids=ids)
        assert plain.hidden_states is None
        last, pooled = ours.transformer(ids, return_dict=False)
        assert torch.equal(last, plain.last_hidden_state) and torch.equal(pooled, plain[1])


def test_openclip_text_encoder_equals_transformers(tmp_path: Path):
    text = {"context_length": 77, "vocab_size": 500, "width": 64, "heads": 4, "layers": 4}
    arch = tmp_path / "tiny.json"
    arch.write_text(json.dumps({"embed_dim": 48, "vision_cfg": {}, "text_cfg": text}))
    ours = randomised(FrozenOpenCLIPEmbedder(arch=str(arch), layer="penultimate"))
    theirs = diffusers_models.text_encoder(
        dict(
            vocab_size=500, hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            hidden_act="gelu", eos_token_id=499, bos_token_id=498,
        )
    )  # fmt: skip
    load_text(theirs, converted(ours, "text_encoder"))

    ids = torch.randint(0, 498, (2, 77))
    with torch.no_grad():
        torch.testing.assert_close(ours.model(ids, skip=1), theirs(ids).last_hidden_state, **CLOSE)
