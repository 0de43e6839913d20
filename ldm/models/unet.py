"""The UNet that predicts noise (eps) or velocity (v) from a noisy latent.

One class covers every variant of the reference: SD 1.x (convolutional projections, 8 heads), SD 2.x (linear
projections, 64 channels a head), inpainting (9 input channels), depth (5), 4x upscaler (7, a noise-level
label, self-attention partly replaced), unCLIP (an image embedding). Architecture: arXiv 2112.10752, appendix;
arXiv 2105.05233.

Parameter names and their order are those of the reference checkpoints: `input_blocks`, `middle_block`,
`output_blocks`, `time_embed`, `label_emb`, `out`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.timesteps import timestep_embedding
from ldm.errors import ConfigError
from ldm.models.attention import AttentionBlock, SpatialTransformer, run_block, zero_module


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int, use_conv: bool, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, padding=1) if use_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Downsample(nn.Module):
    """Halving by a 3x3 convolution of stride 2, or by averaging."""

    def __init__(self, channels: int, use_conv: bool, out_channels: int | None = None) -> None:
        super().__init__()
        self.op: nn.Module = nn.AvgPool2d(2)
        if use_conv:
            self.op = nn.Conv2d(channels, out_channels or channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class ResBlock(nn.Module):
    """Residual block conditioned on the time embedding, by addition or by scale and shift."""

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        dropout: float,
        out_channels: int | None = None,
        use_conv: bool = False,                  # 3x3 instead of 1x1 where the skip changes width
        use_scale_shift_norm: bool = False,
        use_checkpoint: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.use_scale_shift_norm = use_scale_shift_norm
        self.use_checkpoint = use_checkpoint
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample: nn.Module | None = None
        if up or down:
            self.resample = Upsample(channels, use_conv=False) if up else Downsample(channels, use_conv=False)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels if use_scale_shift_norm else out_channels)
        )
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if out_channels != channels:
            size = 3 if use_conv else 1
            self.skip_connection = nn.Conv2d(channels, out_channels, size, padding=size // 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return run_block(self._forward, x, emb, recompute=self.use_checkpoint and self.training)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        emb = self.emb_layers(emb)[:, :, None, None]          # (b, c or 2c, 1, 1)
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            norm_out, *rest = self.out_layers
            h = norm_out(h) * (1 + scale) + shift
            for layer in rest:
                h = layer(h)
        else:
            h = self.out_layers(h + emb.to(h.dtype))
        return self.skip_connection(x) + h


class TimestepEmbedSequential(nn.Sequential):
    """Layers in a row; each is given what it takes: the time embedding, the context, or neither."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


@dataclass(frozen=True)
class _Layers:
    """How the layers of a UNet are made; the same in its encoder, its middle and its decoder."""

    emb_channels: int
    dropout: float
    conv_resample: bool
    use_checkpoint: bool
    num_heads: int
    num_head_channels: int
    use_scale_shift_norm: bool
    resblock_updown: bool
    use_new_attention_order: bool
    use_spatial_transformer: bool
    transformer_depth: int
    context_dim: int | Sequence[int] | None
    legacy: bool
    use_linear_in_transformer: bool
    attention_resolutions: Sequence[int]
    self_attention_off: Sequence[bool]              # one a level
    attention_blocks: Sequence[int] | None          # one a level

    def res_block(self, channels: int, out: int, **kwargs: bool) -> ResBlock:
        return ResBlock(
            channels, self.emb_channels, self.dropout, out, use_scale_shift_norm=self.use_scale_shift_norm,
            use_checkpoint=self.use_checkpoint, **kwargs,
        )

    def attention(self, channels: int, no_self_attention: bool, heads: int) -> nn.Module:
        head_dim = self.num_head_channels if self.num_head_channels != -1 else channels // self.num_heads
        if self.use_spatial_transformer:
            return SpatialTransformer(
                channels, channels // head_dim, head_dim, self.transformer_depth,
                context_dim=self.context_dim, disable_self_attn=no_self_attention,
                use_linear=self.use_linear_in_transformer, use_checkpoint=self.use_checkpoint,
            )
        if self.legacy:  # then num_heads_upsample decides where the width of a head is not given
            head_dim = self.num_head_channels
        return AttentionBlock(channels, heads, head_dim, self.use_checkpoint, self.use_new_attention_order)

    def block(
        self, channels: int, width: int, level: int, index: int, heads: int | None = None
    ) -> list[nn.Module]:
        """Make a residual block, and attention where block `index` of the level has it."""
        layers: list[nn.Module] = [self.res_block(channels, width)]
        count = None if self.attention_blocks is None else self.attention_blocks[level]
        if 2**level in self.attention_resolutions and (count is None or index < count):
            heads = self.num_heads if heads is None else heads
            layers.append(self.attention(width, self.self_attention_off[level], heads))
        return layers

    def down(self, channels: int) -> nn.Module:
        if self.resblock_updown:
            return self.res_block(channels, channels, down=True)
        return Downsample(channels, self.conv_resample)

    def up(self, channels: int) -> nn.Module:
        if self.resblock_updown:
            return self.res_block(channels, channels, up=True)
        return Upsample(channels, self.conv_resample)


class UNetEncoder(nn.Module):
    """The first half of the UNet, to the lowest resolution and through it; ControlNet is a copy of it.

    Raises:
        ConfigError: an impossible combination of parameters.
    """

    def __init__(
        self,
        in_channels: int,                               # latent channels plus concatenated conditioning
        model_channels: int,                            # width of the first level
        num_res_blocks: int | Sequence[int],            # one number, or one a level
        attention_resolutions: Sequence[int],           # downsampling factors at which attention is used
        channel_mult: Sequence[float] = (1, 2, 4, 8),   # width of each level over model_channels
        image_size: int | None = None,                  # latent side in training; kept for information
        dropout: float = 0.0,
        conv_resample: bool = True,
        num_classes: int | str | None = None,           # label: a count, "continuous" or "sequential"
        adm_in_channels: int | None = None,             # width of a "sequential" label
        use_checkpoint: bool = False,                   # recompute activations in training
        num_heads: int = -1,
        num_head_channels: int = -1,                    # width of a head; wins over num_heads
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int = 1,
        context_dim: int | Sequence[int] | None = None,
        legacy: bool = True,
        disable_self_attentions: Sequence[bool] | None = None,   # one a level
        num_attention_blocks: Sequence[int] | None = None,       # one a level
        disable_middle_self_attn: bool = False,
        use_linear_in_transformer: bool = False,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        self.settings = given                           # of which ControlNet.for_unet makes a copy
        levels = len(channel_mult)
        self.blocks_a_level = _one_a_level(num_res_blocks, levels, "num_res_blocks")
        self_attention_off = _one_a_level(disable_self_attentions or False, levels, "disable_self_attentions")
        attention_blocks = None
        if num_attention_blocks is not None:
            attention_blocks = _one_a_level(num_attention_blocks, levels, "num_attention_blocks")
        _check_heads(num_heads, num_head_channels)
        if use_spatial_transformer != (context_dim is not None):
            raise ConfigError(
                f"UNetModel: use_spatial_transformer={use_spatial_transformer} with "
                f"context_dim={context_dim}; give both, or neither"
            )
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.num_classes = num_classes
        self.downsampling_factor = 2 ** (levels - 1)
        self.context_dim = context_dim

        emb_channels = model_channels * 4
        self.time_embed = _embedding_mlp(model_channels, emb_channels)
        if num_classes is not None:
            self.label_emb = _label_embedding(num_classes, adm_in_channels, emb_channels)

        self._layers = layers = _Layers(
            emb_channels, dropout, conv_resample, use_checkpoint, num_heads, num_head_channels,
            use_scale_shift_norm, resblock_updown, use_new_attention_order, use_spatial_transformer,
            transformer_depth, context_dim, legacy, use_linear_in_transformer, attention_resolutions,
            self_attention_off, attention_blocks,
        )
        self.widths = [int(mult * model_channels) for mult in channel_mult]
        ch = int(model_channels)
        self.input_blocks = nn.ModuleList(
            [TimestepEmbedSequential(nn.Conv2d(in_channels, model_channels, 3, padding=1))]
        )
        self.skip_channels = [ch]
        for level, width in enumerate(self.widths):
            for index in range(self.blocks_a_level[level]):
                self.input_blocks.append(TimestepEmbedSequential(*layers.block(ch, width, level, index)))
                ch = width
                self.skip_channels.append(ch)
            if level != levels - 1:
                self.input_blocks.append(TimestepEmbedSequential(layers.down(ch)))
                self.skip_channels.append(ch)

        self.middle_block = TimestepEmbedSequential(
            layers.res_block(ch, ch),
            layers.attention(ch, disable_middle_self_attn, num_heads),
            layers.res_block(ch, ch),
        )

    def embed(self, x: Tensor, timesteps: Tensor, y: Tensor | None) -> Tensor:
        """Embed time and label; (b, 4*model_channels)."""
        if (y is not None) != (self.num_classes is not None):
            raise ConfigError(
                f"UNetModel: num_classes={self.num_classes} but the label y is "
                f"{'missing' if y is None else 'given'}; the conditioning key of the model must match"
            )
        t_emb = timestep_embedding(timesteps, self.model_channels)
        emb = self.time_embed(t_emb.to(self.time_embed[0].weight.dtype))
        if y is None:
            return emb
        return emb + self.label_emb(y if isinstance(self.num_classes, int) else y.to(emb.dtype))

    def encode(self, x: Tensor, emb: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return what the middle gives, and the skips: what each input block gives."""
        skips, h = [], x
        for block in self.input_blocks:
            h = block(h, emb, context)
            skips.append(h)
        return self.middle_block(h, emb, context), skips


class UNetModel(UNetEncoder):
    """UNet with residual blocks, attention over pixels and cross-attention to a context.

    Raises:
        ConfigError: an impossible combination of parameters.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        num_heads_upsample: int = -1,
        **encoder: Any,                                 # the rest, as UNetEncoder takes it
    ) -> None:
        super().__init__(in_channels, model_channels, num_res_blocks, attention_resolutions, **encoder)
        self.out_channels = out_channels
        layers, skip_channels, ch = self._layers, list(self.skip_channels), self.widths[-1]
        upsample_heads = layers.num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(self.widths))):
            for index in range(self.blocks_a_level[level] + 1):
                block = layers.block(ch + skip_channels.pop(), width, level, index, upsample_heads)
                ch = width
                if level and index == self.blocks_a_level[level]:
                    block.append(layers.up(ch))
                self.output_blocks.append(TimestepEmbedSequential(*block))

        self.out = nn.Sequential(
            nn.GroupNorm(32, ch),
            nn.SiLU(),
            zero_module(nn.Conv2d(model_channels, out_channels, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
        only_mid_control: bool = False,
    ) -> Tensor:
        """Predict eps or v, as the weights were trained to.

        Args:
            x: (b, in_channels, h, w); h and w multiples of `downsampling_factor`.
            timesteps: (b,), integer or fractional train times.
            context: (b, n, context_dim), what the cross-attention sees.
            y: the label, needed exactly when the model has `num_classes`.
            control: what a ControlNet adds to each skip and, last, to the middle; each may be (b, c, 1, 1).
            only_mid_control: leave the skips alone.

        Returns:
            (b, out_channels, h, w), in the dtype of x.

        Raises:
            ConfigError: a label given to a model without, or the reverse.
        """
        emb = self.embed(x, timesteps, y)
        h, skips = self.encode(x, emb, context)
        if control is not None:
            h = h + control[-1]
            if not only_mid_control:
                skips = [skip + c for skip, c in zip(skips, control[:-1], strict=True)]
        return self.decode(h, skips, emb, context).to(x.dtype)

    def decode(self, h: Tensor, skips: list[Tensor], emb: Tensor, context: Tensor | None) -> Tensor:
        """Return the prediction; empties `skips`, so that each is freed as soon as it is used."""
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb, context)
        return self.out(h)


def _embedding_mlp(width_in: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width), nn.SiLU(), nn.Linear(width, width))


def _label_embedding(num_classes: int | str, adm_in_channels: int | None, width: int) -> nn.Module:
    if isinstance(num_classes, int):
        return nn.Embedding(num_classes, width)
    if num_classes == "continuous":
        return nn.Linear(1, width)
    if num_classes == "sequential" and adm_in_channels is not None:
        return nn.Sequential(_embedding_mlp(adm_in_channels, width))
    raise ConfigError(
        f"UNetModel: num_classes={num_classes!r} with adm_in_channels={adm_in_channels}; expected a count, "
        "'continuous', or 'sequential' with adm_in_channels"
    )


def _one_a_level(value, levels: int, name: str) -> list:
    values = list(value) if isinstance(value, Sequence) else [value] * levels
    if len(values) != levels:
        raise ConfigError(f"UNetModel: {name} has {len(values)} entries; expected one a level ({levels})")
    return values


def _check_heads(num_heads: int, num_head_channels: int) -> None:
    if num_heads == -1 and num_head_channels == -1:
        raise ConfigError("UNetModel: neither num_heads nor num_head_channels is given; give one")
