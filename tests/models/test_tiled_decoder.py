"""Decoding on tiles is decoding the whole: any size, any tile, with and without attention."""

import pytest
import torch

from ldm.models import tiled_decoder
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.tiled_decoder import decode_tiled, margin, stages


def autoencoder(ch_mult=(1, 2, 4), attn_resolutions=(), **options) -> AutoencoderKL:
    ddconfig = dict(
        double_z=True, z_channels=4, resolution=32, in_channels=3, out_ch=3, ch=8, ch_mult=list(ch_mult),
        num_res_blocks=1, attn_resolutions=list(attn_resolutions), num_groups=4, **options,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoencoderKL(ddconfig, embed_dim=4).eval().requires_grad_(False)
    for parameter in model.parameters():  # norms of a fresh model scale by 1 and shift by 0
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def latents(batch: int, height: int, width: int) -> torch.Tensor:
    """Uneven ones: every tile by itself has another mean and deviation than the whole."""
    slope = torch.linspace(-3, 3, width) + torch.linspace(0, 2, height)[:, None]
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(1)) + slope


@pytest.mark.few(2)
@pytest.mark.parametrize("tile", [4, 7, 16])
@pytest.mark.parametrize("size", [(17, 13), (1, 30), (23, 8)])
def test_tiles_give_what_the_whole_gives(size, tile):
    model, z = autoencoder(), latents(2, *size)
    whole = model.decode(z)
    tiled = decode_tiled(model, z, tile)
    assert tiled.shape == whole.shape
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=0)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "options",
    [
        {"ch_mult": (1, 1, 2, 2)},
        {"attn_resolutions": (16, 32)},
        {"attn_type": "none"},
        {"ch_mult": (1,)},
    ],
    ids=["factor 8", "attention in the levels", "no attention", "no doubling"],
)
def test_every_kind_of_decoder(options):
    model, z = autoencoder(**options), latents(1, 11, 9)
    torch.testing.assert_close(decode_tiled(model, z, 4), model.decode(z), atol=1e-4, rtol=0)


def test_a_tile_that_holds_the_picture_is_the_whole():
    model, z = autoencoder(), latents(1, 6, 5)
    assert torch.equal(decode_tiled(model, z, 6), model.decode(z))


@pytest.mark.slow
def test_half_precision_is_as_near_as_half_precision_can_be():
    model, z = autoencoder(), latents(1, 17, 13)
    whole = model.decode(z)
    with torch.autocast("cpu", torch.bfloat16):
        half, tiled = model.decode(z).float(), decode_tiled(model, z, 4).float()
    assert (tiled - whole).abs().mean() < 1.5 * (half - whole).abs().mean()


def test_norms_of_tiles_alone_would_shift_the_colours(monkeypatch):
    """The test above can fail: what the tiles would give with their own statistics is far off."""
    model, z = autoencoder(), latents(1, 17, 13)

    def own(norm, x, mean, variance):
        return torch.nn.functional.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)

    monkeypatch.setattr(tiled_decoder, "normalised", own)
    assert (decode_tiled(model, z, 4) - model.decode(z)).abs().max() > 0.05


def test_the_number_of_passes_is_the_number_of_norms_and_one():
    """As the module says of a published upscaler: 3 + 1 + 9 + 7 + 8 where each level has three blocks."""
    model = autoencoder()
    norms = [sum(isinstance(m, torch.nn.GroupNorm) for m in stage.modules()) for stage in stages(model)]
    assert norms == [2, 1, 6, 4, 5]  # two blocks a level here
    assert [margin(stage) for stage in stages(model)] == [3, 0, 6, 3, 3]
    passes = 0

    def count(*_):
        nonlocal passes
        passes += 1

    last = stages(model)[-1]
    last.register_forward_pre_hook(count)
    tiled_decoder.run_stage(last, torch.randn(1, 16, 8, 8), 4)
    assert passes == 4 * (norms[-1] + 1)
    assert all("forward" not in vars(m) for m in model.modules()), "the norms are as they were"
