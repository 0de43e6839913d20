"""What the conditional models are shown in training, and how it reaches the UNet.

    LatentInpaintDiffusion      [mask, latents of the masked image], as it is
    LatentDepth2ImageDiffusion  the depth at the latents' size, as it is
    LatentUpscaleDiffusion      the small image, noised; level uniform below the model's limit
    ImageEmbeddingConditioned-  the image's own embedding, noised likewise; with some probability zeros
    LatentDiffusion
    any, with a ControlNet      the hint, as it is

`encode` is what can be done once and cached; `condition` is done in every step and draws what is random in
it. Both use the model's own conditioning methods, so that training and sampling see the same.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.cond import Cond, Control
from ldm.errors import ConfigError
from ldm.models.controlnet import HINT_FACTOR
from ldm.models.latent_depth import LatentDepth2ImageDiffusion, concat_depth
from ldm.models.latent_inpaint import LatentInpaintDiffusion
from ldm.models.latent_upscale import LatentUpscaleDiffusion
from ldm.models.unclip import ImageEmbeddingConditionedLatentDiffusion

Noise = Callable[[Tensor], Tensor]  # like -> standard normal numbers


def extra_input_of(model: nn.Module, embedding_dropout: float) -> "ExtraInput | None":
    """Return what a model is shown, or None for one that sees text alone."""
    if isinstance(model, ImageEmbeddingConditionedLatentDiffusion):
        return EmbeddingInput(model, embedding_dropout)
    for kind, extra_input in KINDS.items():
        if isinstance(model, kind):
            return extra_input(model)
    return None


class ExtraInput:
    """What one kind of model is shown.

    Attributes:
        needs: name of the data's extra input that it is made from; "" for none.
    """

    needs = ""

    def __init__(self, model: Any) -> None:
        self.model = model

    def taken(self, given: dict[str, Tensor]) -> Tensor:
        """Return the data's extra input. Raises: ConfigError when the data give none."""
        if self.needs not in given:
            raise ConfigError(
                f"{type(self.model).__name__} is trained on data that give {self.needs}: "
                f"set data.params.extra_input={self.needs}, and the same of val_data"
            )
        return given[self.needs]

    def encode(self, images: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Return the extra input of images (b, 3, H, W) in -1..1, (b, ...)."""
        return self.taken(given)

    def condition(self, context: Tensor, extra: Tensor, noise: Noise, level: int | None = None) -> Cond:
        """Return what the UNet is given.

        Args:
            context: (b, n, width).
            level: of the noise on it, where it has one; None, in training, draws it, and dropout.
        """
        return self.model.hybrid(context, extra)


def levels(extra: Tensor, limit: int, level: int | None) -> Tensor:
    """Return `level` for each extra input (b, ...), or draw it uniformly from 0 .. limit - 1."""
    drawn = torch.randint(limit, (len(extra),)) if level is None else torch.full((len(extra),), level)
    return drawn.to(extra.device)


class InpaintInput(ExtraInput):
    needs = "mask"

    def encode(self, images: Tensor, given: dict[str, Tensor]) -> Tensor:
        return self.model.concat_conditioning(images, self.taken(given))


class DepthInput(ExtraInput):
    needs = "depth"

    def encode(self, images: Tensor, given: dict[str, Tensor]) -> Tensor:
        factor = self.model.downsampling_factor
        return concat_depth(self.taken(given), (images.shape[-2] // factor, images.shape[-1] // factor))


class UpscaleInput(ExtraInput):
    needs = "small"

    def condition(self, context: Tensor, extra: Tensor, noise: Noise, level: int | None = None) -> Cond:
        drawn = levels(extra, self.model.max_noise_level, level)
        return self.model.conditioning(context, extra, drawn, noise(extra))


class EmbeddingInput(ExtraInput):
    """The embedding of the training image itself.

    Args:
        dropout: probability of zeros, level included, as the unconditional half of guidance has it.
    """

    def __init__(self, model: Any, dropout: float) -> None:
        super().__init__(model)
        if model.noise_augmentor is None:
            raise ConfigError("model: unCLIP is trained with a noise_aug_config; this model has none")
        self.dropout = dropout

    def encode(self, images: Tensor, given: dict[str, Tensor]) -> Tensor:
        return self.model.embedder(images)

    def condition(self, context: Tensor, extra: Tensor, noise: Noise, level: int | None = None) -> Cond:
        drawn = levels(extra, self.model.noise_augmentor.max_noise_level, level)
        label = self.model.embedding_conditioning(extra, drawn, noise(extra))  # (b, D + width of the level)
        if level is None:
            label = label * (torch.rand(len(extra)) >= self.dropout).to(label)[:, None]
        return self.model.conditioning(context, label)


class HintInput(ExtraInput):
    """The map that a ControlNet follows: the data's hint, or what an annotator makes of the training image.

    Args:
        network: the ControlNet.
        annotator: (h, w, 3) uint8 -> a map like it; None: the data give the hint.
        is_pooled: its residuals are averaged over the image.
    """

    needs = "hint"

    def __init__(
        self,
        model: Any,
        network: nn.Module,
        annotator: Callable[[np.ndarray], np.ndarray] | None,
        is_pooled: bool,
    ) -> None:
        super().__init__(model)
        self.network, self.annotator, self.is_pooled = network, annotator, is_pooled

    def encode(self, images: Tensor, given: dict[str, Tensor]) -> Tensor:
        """Return the maps (b, 3, h, w), uint8."""
        if self.annotator is None:
            if self.needs not in given:
                raise ConfigError(
                    "control: the data give no hint; set control.annotator, such as canny, or take data with "
                    "hints, such as ldm.data.pairs.PromptJson"
                )
            return (given[self.needs] * 255).round().to(torch.uint8)
        pixels = ((images.float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        maps = [self.annotator(np.ascontiguousarray(x)) for x in pixels.permute(0, 2, 3, 1).numpy()]
        return torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).contiguous().to(images.device)

    def condition(self, context: Tensor, extra: Tensor, noise: Noise, level: int | None = None) -> Cond:
        hint = extra.float() / 255
        if (factor := HINT_FACTOR / self.model.downsampling_factor) != 1:
            hint = F.interpolate(hint, scale_factor=factor)
        return Cond(context, controls=(Control(self.network, hint, pooled=self.is_pooled),))


KINDS: dict[type, type[ExtraInput]] = {
    LatentInpaintDiffusion: InpaintInput,
    LatentDepth2ImageDiffusion: DepthInput,
    LatentUpscaleDiffusion: UpscaleInput,
}
