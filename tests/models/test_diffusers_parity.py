"""Each network against diffusers' and transformers' own, with the same random weights.

An independent second witness beside the golden cases, and one that can take any size: the published settings
of each family (heads, projections, four levels) at a small width.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.text_clip import FrozenCLIPEmbedder
from ldm.models.unet import UNetModel

SIZES = dict(
    in_channels=4,
    out_channels=4,
    model_channels=32,
    num_res_blocks=2,
    attention_resolutions=[4, 2, 1],
    channel_mult=[1, 2, 4, 4],
    use_spatial_transformer=True,
    legacy=False,
)
LDM_UNETS = {
    "sd1": dict(SIZES, num_heads=4, context_dim=48),
    "sd2": dict(SIZES, num_head_channels=16, context_dim=40, use_linear_in_transformer=True),
}
HEADS = {"sd1": 4, "sd2": (2, 4, 8, 8)}  # diffusers calls the number of heads attention_head_dim


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter noise, the zero-initialised ones too, so that nothing is switched off."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.3 if name.endswith("bias") else parameter[0].numel() ** -0.5
            parameter.copy_(
                scale * torch.randn_like(parameter) + ("norm" in name and name.endswith("weight"))
            )
    return module.eval()


def prefixed(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: x.clone() for name, x in module.state_dict().items()}


@pytest.mark.parametrize("family", LDM_UNETS)
def test_unet_equals_diffusers(family: str):
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    settings = LDM_UNETS[family]
    ours = randomised(UNetModel(**settings))
    theirs = UNet2DConditionModel(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        attention_head_dim=HEADS[family],
        cross_attention_dim=settings["context_dim"],
        use_linear_projection=settings.get("use_linear_in_transformer", False),
    ).eval()
    config = SimpleNamespace(**theirs.config)
    weights = convert_ldm_unet_checkpoint(prefixed(ours, "model.diffusion_model."), vars(config))
    theirs.load_state_dict(weights, strict=True)

    x, t = torch.randn(2, 4, 16, 24), torch.tensor([0, 981])
    context = torch.randn(2, 11, settings["context_dim"])
    with torch.no_grad():
        torch.testing.assert_close(
            ours(x, t, context=context), theirs(x, t, context).sample, atol=2e-5, rtol=1e-4
        )


def test_autoencoder_equals_diffusers():
    import diffusers
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    ddconfig = dict(
        double_z=True, z_channels=4, resolution=64, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 2, 4, 4],
        num_res_blocks=2, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    ours = randomised(AutoencoderKL(ddconfig, embed_dim=4))
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
    ).eval()
    weights = convert_ldm_vae_checkpoint(prefixed(ours, "first_stage_model."), dict(theirs.config))
    theirs.load_state_dict(weights, strict=True)

    image, z = torch.randn(2, 3, 32, 48), torch.randn(2, 4, 4, 6)
    with torch.no_grad():
        close = dict(atol=2e-5, rtol=1e-4)
        posterior, expected = ours.encode(image), theirs.encode(image).latent_dist
        torch.testing.assert_close(posterior.mean, expected.mean, **close)
        torch.testing.assert_close(posterior.logvar, expected.logvar, **close)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, **close)


def test_clip_text_encoder_equals_transformers():
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = dict(
        vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4
    )
    ours = randomised(FrozenCLIPEmbedder(text_config=sizes))
    theirs = CLIPTextModel(CLIPTextConfig(**sizes, eos_token_id=499, bos_token_id=498)).eval()
    weights = {
        name: x for name, x in ours.transformer.state_dict().items() if not name.endswith("position_ids")
    }
    if "text_model.final_layer_norm.weight" not in theirs.state_dict():  # newer releases nest less
        weights = {name.removeprefix("text_model."): x for name, x in weights.items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("position_ids") for name in missing)

    ids = torch.randint(0, 498, (2, 77))
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        torch.testing.assert_close(ours.encode_tokens(ids), expected, atol=2e-5, rtol=1e-4)
