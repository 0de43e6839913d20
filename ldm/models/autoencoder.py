"""The autoencoder between images and latents (arXiv 2112.10752, section 3.1).

    encode: x (b, 3, H, W) in [-1, 1] -> q(z|x), a diagonal normal over (b, 4, H/8, W/8)
    decode: z -> x, not clamped

With `ch_mult` of n entries the downsampling factor is 2^(n-1): 8 for SD, 4 for the 4x upscaler. Normalisation
is GroupNorm with eps 1e-6 (the UNet's residual blocks use 1e-5). The scale factor of the latents belongs to
the diffusion model, not to this class.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.models.attention import attend
from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.models.unet import Upsample


class ResnetBlock(nn.Module):
    """x + conv(silu(GN(conv(silu(GN(x)))))), with a 1x1 convolution on the skip where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, num_groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Self-attention over pixels with one head."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        # Contiguous, because torch's attention falls back to a matrix of n x n weights for other layouts.
        tokens = (f(y).flatten(2).transpose(1, 2).contiguous() for f in (self.q, self.k, self.v))
        q, k, v = (t[:, None] for t in tokens)                                                  # (b, 1, n, c)
        out = attend(q, k, v)
        # Not by einops, whose strides for a batch of one make the convolution after it round differently.
        out = out.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])                          # (b, c, h, w)
        return x + self.proj_out(out)


class Downsample(nn.Module):
    """Halve the sides with a 3x3 convolution that is padded only at the right and the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, dropout: float, attention: bool, num_groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout, num_groups)
        self.attn_1 = AttnBlock(channels, num_groups) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, dropout, num_groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution; `block`, `attn` and `downsample` or `upsample` are LDM key names."""

    def __init__(
        self, channels: int, width: int, count: int, dropout: float, attention: bool, num_groups: int
    ) -> None:
        super().__init__()
        widths = [channels] + [width] * (count - 1)
        self.block = nn.ModuleList(ResnetBlock(c, width, dropout, num_groups) for c in widths)
        self.attn = nn.ModuleList(AttnBlock(width, num_groups) for _ in range(count if attention else 0))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


class Encoder(nn.Module):
    """Image -> (b, 2*z_channels, h, w), or z_channels without `double_z`."""

    def __init__(
        self,
        ch: int,                            # width at full resolution
        ch_mult: Sequence[int],             # width of each level relative to ch; each level halves the sides
        num_res_blocks: int,
        attn_resolutions: Sequence[int],    # sides, derived from `resolution`, with attention in every block
        in_channels: int,
        resolution: int,                    # nominal side; any side works
        z_channels: int,
        double_z: bool = True,
        dropout: float = 0.0,
        attn_type: str = "vanilla",         # "none" leaves attention out; all other names mean the same
        num_groups: int = 32,               # of GroupNorm; must divide every width
    ) -> None:
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        attention = attn_type != "none"
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for level, (c, width) in enumerate(zip([ch, *widths], widths, strict=False)):
            here = attention and resolution // 2**level in attn_resolutions
            stage = Level(c, width, num_res_blocks, dropout, here, num_groups)
            if level != len(widths) - 1:
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = Middle(widths[-1], dropout, attention, num_groups)
        self.norm_out = nn.GroupNorm(num_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            h = stage(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent (b, z_channels, h, w) -> image. Levels run backwards: `up.0` has the highest resolution."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,                # each level has one block more than this
        attn_resolutions: Sequence[int],
        out_ch: int,
        resolution: int,
        z_channels: int,
        dropout: float = 0.0,
        attn_type: str = "vanilla",
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [ch * mult for mult in ch_mult]
        attention = attn_type != "none"
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], dropout, attention, num_groups)
        stages = []
        for level, width in enumerate(widths):
            above = widths[min(level + 1, len(widths) - 1)]
            here = attention and resolution // 2**level in attn_resolutions
            stage = Level(above, width, num_res_blocks + 1, dropout, here, num_groups)
            if level != 0:
                stage.upsample = Upsample(width, use_conv=True)
            stages.append(stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = nn.GroupNorm(num_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], out_ch, 3, padding=1)

    def layers(self) -> list[nn.Module]:
        """Return the layers in order; ldm.models.tiled_decoder applies the same layers to tiles."""
        layers: list[nn.Module] = [self.conv_in, self.mid.block_1, self.mid.attn_1, self.mid.block_2]
        for stage in reversed(self.up):
            for index, block in enumerate(stage.block):
                layers += [block, stage.attn[index]] if len(stage.attn) else [block]
            if hasattr(stage, "upsample"):
                layers.append(stage.upsample)
        return [*layers, self.norm_out, nn.SiLU(), self.conv_out]

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers():
            z = layer(z)
        return z


class AutoencoderKL(nn.Module):
    """Autoencoder trained with a KL term that keeps its latents close to the standard normal.

    Args:
        ddconfig: parameters of Encoder and Decoder, with the names of the reference.
        embed_dim: channels of the latent.
        lossconfig: the training loss; kept as `.loss`, not used here.

    Raises:
        ConfigError: `double_z` is false, or ddconfig has an unknown key.
    """

    def __init__(self, ddconfig: dict[str, Any], embed_dim: int, lossconfig: nn.Module | None = None) -> None:
        super().__init__()
        if not ddconfig.get("double_z", True):
            raise ConfigError("AutoencoderKL: ddconfig.double_z is false; expected true (mean, log variance)")
        separate = ("in_channels", "out_ch", "double_z")
        shared = {key: value for key, value in ddconfig.items() if key not in separate}
        try:
            self.encoder = Encoder(in_channels=ddconfig["in_channels"], **shared)
            self.decoder = Decoder(out_ch=ddconfig["out_ch"], **shared)
        except (TypeError, KeyError) as error:
            raise ConfigError(f"AutoencoderKL: invalid ddconfig: {error}") from error
        z_channels = ddconfig["z_channels"]
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.loss = lossconfig
        self.embed_dim = embed_dim
        self.downsampling_factor = 2 ** (len(ddconfig["ch_mult"]) - 1)

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Encode images (b, 3, H, W) in [-1, 1]; the sides are multiples of the downsampling factor."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Decode unscaled latents (b, embed_dim, h, w) to images in about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z))

    def forward(
        self, x: Tensor, sample_posterior: bool = True
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Encode and decode, and return the reconstruction and the posterior."""
        posterior = self.encode(x)
        z = posterior.sample() if sample_posterior else posterior.mode()
        return self.decode(z), posterior

    @property
    def last_layer(self) -> Tensor:
        """The weight whose gradients balance the adversarial loss in training."""
        return self.decoder.conv_out.weight
