"""ControlNet (arXiv 2302.05543): a trained copy of the UNet's encoder steers a text-to-image model.

    h, s_0 .. s_11 = encoder(x_t)           control_i = scale_i zero_conv_i(copy(x_t, hint))
    decoder(h + control_12, s_i + control_i)

The hint is an image (edges, pose, depth, ...) in [0, 1] at full size. ldm.diffusion.cond.Control says how
strongly and when it acts, and steers models of every kind; ControlLDM is the model of the reference
configurations.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ldm.diffusion.cond import NUM_CONTROLS, Cond, Control, control_scales
from ldm.errors import ConfigError
from ldm.models.attention import zero_module
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.unet import TimestepEmbedSequential, UNetEncoder, UNetModel

HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256)     # of the convolutions before the last
HINT_STRIDES = (1, 1, 2, 1, 2, 1, 2)
HINT_FACTOR = 8                                 # pixels of the hint for each latent


ControlledUnetModel = UNetModel  # the reference class: any UNet takes control


class ControlNet(UNetEncoder):
    """Copy of the UNet's encoder that reads a hint and gives one residual for each skip and the middle.

    Args:
        hint_channels: channels of the hint, 3 for an image.
    """

    def __init__(self, hint_channels: int, **encoder: Any) -> None:
        super().__init__(**encoder)
        width = self.model_channels
        self.zero_convs = nn.ModuleList(_zero_conv(channels) for channels in self.skip_channels)
        self.input_hint_block = _hint_block(hint_channels, width)
        # The middle stands after the zero convolutions in reference files.
        self.middle_block = self._modules.pop("middle_block")
        self.middle_block_out = _zero_conv(self.skip_channels[-1])

    @classmethod
    def for_unet(cls, unet: UNetEncoder, in_channels: int = 4, hint_channels: int = 3) -> "ControlNet":
        """Return an untrained ControlNet of a UNet's own shape.

        Args:
            in_channels: of x_t, without what is joined to it in an inpainting or a depth model.
        """
        without_label = {"in_channels": in_channels, "num_classes": None, "adm_in_channels": None}
        return cls(hint_channels, **unet.settings | without_label)

    def forward(
        self, x: Tensor, hint: Tensor, timesteps: Tensor, context: Tensor | None = None
    ) -> list[Tensor]:
        """Return the residuals, shallowest first, the middle's last.

        Args:
            x: (b, in_channels, h, w) noisy latents.
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

    Attributes that scripts set: control_scales, only_mid_control, and for training learning_rate and
    sd_locked, which scripts/train.py takes from its own configuration.

    Args:
        control_stage_config: the ControlNet.
        only_mid_control: let it act on the middle alone.
        global_average_pooling: replace each residual by its mean over the image (the shuffle model).
    """

    learning_rate, sd_locked = 1e-5, True

    def __init__(
        self,
        control_stage_config: nn.Module,
        only_mid_control: bool = False,
        global_average_pooling: bool = False,
        **latent_diffusion: Any,
    ) -> None:
        super().__init__(**latent_diffusion)
        # Zeros unless learned, which no reference model did; ControlNet's files hold it, others do not.
        self.register_buffer("logvar", torch.zeros(self.num_timesteps))
        self.control_model = control_stage_config
        self.only_mid_control = only_mid_control
        self.global_average_pooling = global_average_pooling
        self.set_control_strength(1.0)

    def materialise_buffers(self, device: torch.device | str) -> None:
        super().materialise_buffers(device)
        self.logvar = torch.zeros(self.num_timesteps, device=device)

    def conditioning(self, context: Tensor, hint: Tensor | None) -> Cond:
        """Return what the networks are given with x_t and t.

        Args:
            context: (b, n, width) encoded prompts.
            hint: (b or 1, 3, H, W) in [0, 1]; None for no control.
        """
        if hint is None:
            return Cond(context)
        return Cond(context, controls=(self._control(hint.expand(len(context), -1, -1, -1)),))

    def unconditional(self, cond: Cond, context: Tensor, guess_mode: bool = False) -> Cond:
        """Return guidance's other half of `cond`: the text is `context`; guess mode drops the hint too."""
        return Cond(context) if guess_mode else super().unconditional(cond, context)

    def set_control_strength(self, strength: float, guess_mode: bool = False) -> None:
        """Set `control_scales`: the same everywhere, or in guess mode smaller the shallower the residual."""
        count = max(NUM_CONTROLS, len(self.control_model.zero_convs) + 1)
        self.control_scales = list(control_scales(strength, guess_mode, count))

    def low_vram_shift(self, is_diffusing: bool) -> None:
        """Keep what sampling needs on the device and the other networks on the CPU, or the reverse."""
        sampling = self.model, self.control_model
        others = self.first_stage_model, self.cond_stage_model
        for parts, is_needed in ((sampling, is_diffusing), (others, not is_diffusing)):
            for part in parts:
                part.to(self.device if is_needed else "cpu")

    def as_cond(self, cond: Any) -> Cond:
        """Return the Cond of the reference dict of c_crossattn and c_concat, the hints (None: no control).

        Raises: ConfigError for anything else, as a tensor alone could be either.
        """
        if isinstance(cond, Cond):
            return cond
        if not isinstance(cond, dict) or "c_crossattn" not in cond:
            raise ConfigError(
                f"ControlLDM: the conditioning is a {type(cond).__name__}; expected a dict of c_crossattn "
                "(list of text contexts) and c_concat (list of hints, or None)"
            )
        read = super().as_cond(cond)
        return Cond(read.context, controls=() if read.concat is None else (self._control(read.concat),))

    def _control(self, hint: Tensor) -> Control:
        """Return the control as the reference attributes of this model say."""
        scales = list(self.control_scales)
        if self.only_mid_control:
            count = len(self.control_model.zero_convs)
            scales[:count] = [0.0] * count
        return Control(self.control_model, hint, tuple(scales), pooled=self.global_average_pooling)


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
