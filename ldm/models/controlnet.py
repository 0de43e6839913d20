"""ControlNet (arXiv 2302.05543): a trained copy of the UNet's encoder steers a text-to-image model.

    h, s_0 .. s_11 = encoder(x_t)           control_i = scale_i zero_conv_i(copy(x_t, hint))
    decoder(h + control_12, s_i + control_i)

The hint is a picture (edges, pose, depth, ...) in [0, 1] at full size. Guess mode (section 3.6 of the paper's
supplement) leaves the hint out of guidance's unconditional half and weakens the shallow controls.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.models.attention import zero_module
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.unet import TimestepEmbedSequential, UNetEncoder, UNetModel

HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)     # of the convolutions before the last
HINT_STRIDES = (1, 1, 2, 1, 2, 1, 2)            # 8 in all, as the autoencoder's factor
GUESS_DECAY = 0.825
NUM_CONTROLS = 13                               # of every published ControlNet; smaller ones use the first


class ControlledUnetModel(UNetModel):
    """UNet that adds controls to its middle and its skips."""

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        control: Sequence[Tensor] | None = None,
        only_mid_control: bool = False,
        y: Tensor | None = None,
    ) -> Tensor:
        """Predict eps or v (b, out_channels, h, w).

        Args:
            x, timesteps, context, y: as UNetModel.forward.
            control: one tensor for each input block, then one for the middle; each may be (b, c, 1, 1).
            only_mid_control: leave the skips alone.
        """
        emb = self.embed(x, timesteps, y)
        h, skips = self.encode(x, emb, context)
        if control is not None:
            h = h + control[-1]
            if not only_mid_control:
                skips = [skip + c for skip, c in zip(skips, control[:-1], strict=True)]
        return self.decode(h, skips, emb, context).to(x.dtype)


class ControlNet(UNetEncoder):
    """Copy of the UNet's encoder that reads a hint and gives one control for each skip and the middle.

    Args:
        hint_channels: channels of the hint, 3 for a picture.
    """

    def __init__(self, hint_channels: int, **encoder: Any) -> None:
        super().__init__(**encoder)
        width = self.model_channels
        self.zero_convs = nn.ModuleList(_zero_conv(channels) for channels in self.skip_channels)
        self.input_hint_block = _hint_block(hint_channels, width)
        # The middle stands after the zero convolutions in published files.
        self.middle_block = self._modules.pop("middle_block")
        self.middle_block_out = _zero_conv(self.skip_channels[-1])

    def forward(
        self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor | None = None
    ) -> list[Tensor]:
        """Return the controls, shallowest first, the middle's last.

        Args:
            x: (b, c, h, w) noisy latents.
            hint: (b, hint_channels, 8 h, 8 w) in [0, 1].
            timesteps, context: as UNetModel.forward.
        """
        emb = self.embed(x, timesteps, None)
        guided = self.input_hint_block(hint.to(x.dtype), emb, context)          # (b, model_channels, h, w)
        controls, h = [], x
        for index, (block, zero_conv) in enumerate(zip(self.input_blocks, self.zero_convs, strict=True)):
            h = block(h, emb, context)
            if index == 0:
                h = h + guided
            controls.append(zero_conv(h, emb, context))
        h = self.middle_block(h, emb, context)
        return [*controls, self.middle_block_out(h, emb, context)]


class ControlLDM(LatentDiffusion):
    """Latent diffusion steered by a ControlNet.

    Args:
        control_stage_config: the ControlNet.
        only_mid_control: let it act on the middle alone.
        global_average_pooling: replace each control by its mean over the picture (the shuffle model).
    """

    def __init__(
        self,
        control_stage_config: nn.Module,
        only_mid_control: bool = False,
        global_average_pooling: bool = False,
        **latent_diffusion: Any,
    ) -> None:
        super().__init__(**latent_diffusion)
        # Zeros unless learned, which no published model did; ControlNet's files hold it, others do not.
        self.register_buffer("logvar", torch.zeros(self.num_timesteps))
        self.control_model = control_stage_config
        self.only_mid_control = only_mid_control
        self.global_average_pooling = global_average_pooling
        self.set_control_strength(1.0)

    def materialise_buffers(self, device: torch.device | str) -> None:
        super().materialise_buffers(device)
        self.logvar = torch.zeros(self.num_timesteps, device=device)

    def conditioning(self, context: Tensor, hint: Tensor | None) -> dict[str, Any]:
        """Return what the networks are told beside x_t and t.

        Args:
            context: (b, n, width) encoded prompts.
            hint: (b or 1, 3, H, W) in [0, 1]; None for no control.
        """
        concat = None if hint is None else [hint.expand(len(context), -1, -1, -1)]
        return {"c_concat": concat, "c_crossattn": [context]}

    def unconditional(
        self, cond: dict[str, Any], context: Tensor, guess_mode: bool = False
    ) -> dict[str, Any]:
        """Return guidance's other half of `cond`: the text is `context`; guess mode drops the hint too."""
        concat = None if guess_mode else cond["c_concat"]
        return {"c_concat": concat, "c_crossattn": [context]}

    def set_control_strength(self, strength: float, guess_mode: bool = False) -> None:
        """Set `control_scales`: the same everywhere, or in guess mode smaller the shallower the control."""
        count = max(NUM_CONTROLS, len(self.control_model.zero_convs) + 1)
        self.control_scales = [
            strength * (GUESS_DECAY ** (count - 1 - i) if guess_mode else 1.0) for i in range(count)
        ]

    def apply_model(self, x_t: Tensor, t: Tensor, cond: dict[str, Any]) -> Tensor:
        """Run the UNet at `t` (b,) on x_t (b, c, h, w), controlled unless the hint (`c_concat`) is None."""
        if not isinstance(cond, dict) or "c_crossattn" not in cond:
            raise ConfigError(
                f"ControlLDM: the conditioning is a {type(cond).__name__}; expected a dict of c_crossattn "
                "(list of text contexts) and c_concat (list of hints, or None)"
            )
        context = torch.cat(cond["c_crossattn"], dim=1)
        control = None
        if cond.get("c_concat") is not None:
            control = self.controls(x_t, torch.cat(cond["c_concat"], dim=1), t, context)
        unet = self.model.diffusion_model
        return unet(x_t, t, context=context, control=control, only_mid_control=self.only_mid_control)

    def controls(self, x_t: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        """Return the scaled controls. Longer `control_scales` are paired from the first, as published."""
        controls = self.control_model(x_t, hint=hint, timesteps=t, context=context)
        if len(self.control_scales) < len(controls):
            raise ConfigError(
                f"control_scales has {len(self.control_scales)} entries; expected {len(controls)}, "
                "one for each control, the middle's last"
            )
        scaled = [c * scale for c, scale in zip(controls, self.control_scales, strict=False)]
        if self.global_average_pooling:
            scaled = [c.mean(dim=(2, 3), keepdim=True) for c in scaled]
        return scaled


def _zero_conv(channels: int) -> TimestepEmbedSequential:
    return TimestepEmbedSequential(zero_module(nn.Conv2d(channels, channels, 1)))


def _hint_block(hint_channels: int, width: int) -> TimestepEmbedSequential:
    """Eight convolutions from the hint to the latents' size, the last one zero."""
    layers: list[nn.Module] = []
    channels = hint_channels
    for out, stride in zip(HINT_WIDTHS, HINT_STRIDES, strict=True):
        layers += [nn.Conv2d(channels, out, 3, padding=1, stride=stride), nn.SiLU()]
        channels = out
    return TimestepEmbedSequential(*layers, zero_module(nn.Conv2d(channels, width, 3, padding=1)))
