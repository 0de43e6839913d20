"""No tensor grows with the square of the number of tokens, in the UNet or in the autoencoder's middle.

Every tensor that an operation makes is looked at. At 64 x 64 latents a matrix of attention weights would have
4096 * 4096 entries a head, many times more than anything else in these small networks.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.unet import UNetModel

SIDE = 64
TOKENS = SIDE * SIDE


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor made, and by which operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements, self.operation = 0, ""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor) and x.numel() > self.elements:
                self.elements, self.operation = x.numel(), str(function)
        return out


def unet(**options) -> torch.Tensor:
    """Run a UNet with plain attention, or with a spatial transformer where `context_dim` is given."""
    if "context_dim" in options:
        options |= {"use_spatial_transformer": True, "legacy": False}
    model = UNetModel(
        in_channels=4,
        out_channels=4,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=[1, 2],
        channel_mult=[1, 2],
        num_head_channels=16,
        **options,
    ).eval()
    context = torch.randn(1, 77, 8) if "context_dim" in options else None
    return model(torch.randn(1, 4, SIDE, SIDE), torch.tensor([500]), context=context)


def decode() -> torch.Tensor:
    ddconfig = dict(
        double_z=True, z_channels=4, resolution=64, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1],
        num_res_blocks=1, attn_resolutions=[], dropout=0.0,
    )  # fmt: skip
    return AutoencoderKL(ddconfig, embed_dim=4).eval().decode(torch.randn(1, 4, SIDE, SIDE))


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "compute",
    [
        lambda: unet(context_dim=8, use_linear_in_transformer=True),
        lambda: unet(context_dim=8),
        lambda: unet(),
        decode,
    ],
    ids=["sd2", "sd1", "plain attention", "autoencoder"],
)
def test_nothing_grows_with_tokens_squared(compute):
    with torch.no_grad(), LargestTensor() as largest:
        assert compute().isfinite().all()
    assert largest.elements < TOKENS**2 / 4, f"{largest.operation} made {largest.elements} elements"


def test_the_look_can_find_one():
    q = torch.randn(1, TOKENS, 8)
    with LargestTensor() as largest:
        (q @ q.transpose(1, 2)).softmax(-1) @ q
    assert largest.elements == TOKENS**2
