"""Inpainting by a UNet that sees the mask and what is left of the image (arXiv 2112.10752, section 4.5).

    c_concat = [m, E(x (1 - m))]      m: 1 where to paint; E: scaled latents

Painted pixels are 0, mid-grey, before the encoder. Both halves of guidance see the same mask and image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.diffusion.cond import Cond
from ldm.errors import InputError
from ldm.models.latent_diffusion import LatentFinetuneDiffusion


class LatentInpaintDiffusion(LatentFinetuneDiffusion):
    """Latent diffusion with the mask (1 channel) and the masked image's latents (4) beside x_t."""

    def conditioning(
        self, context: Tensor, images: Tensor, mask: Tensor, noise: Tensor | None = None
    ) -> Cond:
        """Return what the UNet is given with x_t and t.

        Args:
            context: (b, n, width) encoded prompts.
            images: (b or 1, 3, H, W) in [-1, 1].
            mask: (b or 1, 1, H, W), 0.5 and above where to paint.
            noise: (b, c, h, w) of the posterior of the masked image; drawn on the CPU's generator if None.
        """
        return self.hybrid(context, self.concat_conditioning(images, mask, noise))

    def concat_conditioning(self, images: Tensor, mask: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return [mask, latents of the masked image] (b, 1 + c, h, w); arguments as `conditioning`.

        Raises:
            InputError: mask and images are of different sizes.
        """
        if mask.shape[-2:] != images.shape[-2:] or mask.shape[1] != 1:
            raise InputError(
                f"the mask is {tuple(mask.shape)}, the image {tuple(images.shape)}; expected one channel "
                "and the image's size"
            )
        latents = self.get_first_stage_encoding(self.encode_first_stage(self.left(images, mask)), noise)
        return self.concatenated(mask, latents)

    def left(self, images: Tensor, mask: Tensor) -> Tensor:
        """Return what the mask leaves of the images (b, 3, H, W): mid-grey, 0, where to paint."""
        return images * (mask < 0.5).to(images)

    def concatenated(self, mask: Tensor, latents: Tensor) -> Tensor:
        """Return [mask, latents] (b, 1 + c, h, w) of mask (b or 1, 1, H, W) and latents (b, c, h, w)."""
        small = F.interpolate((mask >= 0.5).to(latents), size=latents.shape[-2:], mode="nearest")
        return torch.cat([small.expand(len(latents), -1, -1, -1), latents], dim=1)
