"""Four times larger images: the UNet sees the small image, noised, beside x_t (arXiv 2106.15282).

    c_concat = z,  y = l     where z is the small image at noise level l (ldm.models.noise_augmentation)

The latents have the sides of the small image, and the decoder enlarges by 4. Both halves of guidance see
the same noised image and level.
"""

from dataclasses import replace

from einops import rearrange
from torch import Tensor, nn

from ldm.diffusion.cond import Cond
from ldm.errors import ConfigError, InputError
from ldm.models.latent_diffusion import LatentDiffusion, LatentFinetuneDiffusion


class LatentUpscaleDiffusion(LatentDiffusion):
    """Latent diffusion with a small image beside x_t, and its noise level as the label.

    Args:
        low_scale_config: what noises the small image.
    """

    def __init__(self, low_scale_config: nn.Module, **latent_diffusion) -> None:
        super().__init__(**latent_diffusion)
        self.low_scale_model = low_scale_config

    @property
    def max_noise_level(self) -> int:
        return self.low_scale_model.max_noise_level

    def conditioning(
        self, context: Tensor, images: Tensor, noise_level: Tensor | int, noise: Tensor | None = None
    ) -> Cond:
        """Return what the UNet is given with x_t and t.

        Args:
            context: (b, n, width) encoded prompts.
            images: (b or 1, 3, h, w) small images in [-1, 1], of the latents' size.
            noise_level: one, or (b,) integers.
            noise: (b, 3, h, w); drawn on the images' device if None.
        """
        images = images.expand(len(context), -1, -1, -1)
        noised, levels = self.low_scale_model(images, noise_level, noise)
        return Cond(context, noised, levels)


class LatentUpscaleFinetuneDiffusion(LatentFinetuneDiffusion):
    """The upscaler as it was finetuned: the small image may be cut up into channels, noise is optional.

    Args:
        reshuffle_patch_size: p turns (b, c, p h, p w) into (b, p p c, h, w), one group of channels for each
            of the p x p tiles of the image. None leaves it.
        low_scale_config: what noises the small image; None leaves it.
    """

    def __init__(
        self,
        reshuffle_patch_size: int | None = None,
        low_scale_config: nn.Module | None = None,
        **latent_diffusion,
    ) -> None:
        super().__init__(**latent_diffusion)
        if reshuffle_patch_size is not None and reshuffle_patch_size < 1:
            raise ConfigError(f"reshuffle_patch_size is {reshuffle_patch_size}; expected 1 or more")
        self.reshuffle_patch_size = reshuffle_patch_size
        self.low_scale_model = low_scale_config

    def conditioning(
        self,
        context: Tensor,
        images: Tensor,
        noise_level: Tensor | int | None = None,
        noise: Tensor | None = None,
    ) -> Cond:
        """Return what the UNet is given with x_t and t; arguments as those of LatentUpscaleDiffusion."""
        if self.low_scale_model is None and (noise_level is not None or noise is not None):
            raise InputError("this model has no low_scale_model, so it takes no noise level; leave it out")
        concat = images if self.reshuffle_patch_size is None else tiles(images, self.reshuffle_patch_size)
        cond = self.hybrid(context, concat)
        if self.low_scale_model is None:
            return cond
        noised, levels = self.low_scale_model(cond.concat, noise_level, noise)
        return replace(cond, concat=noised, label=levels)


def tiles(images: Tensor, count: int) -> Tensor:
    """Put the count x count tiles of (b, c, H, W) on top of each other: (b, count count c, h, w).

    Raises:
        InputError: a side that `count` does not divide.
    """
    if images.shape[-2] % count or images.shape[-1] % count:
        raise InputError(f"an image of {tuple(images.shape[-2:])} has no {count} x {count} equal tiles")
    return rearrange(images, "b c (n h) (m w) -> b (n m c) h w", n=count, m=count)
