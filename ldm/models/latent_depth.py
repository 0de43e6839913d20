"""Images of a given depth: the UNet sees a depth map beside x_t (5 input channels).

    c_concat = 2 (d - min d) / (max d - min d) - 1      per image, at the latents' size

d is inverse depth as MiDaS gives it: larger is nearer. Both halves of guidance see the same map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.cond import Cond
from ldm.errors import ConfigError
from ldm.models.latent_diffusion import LatentFinetuneDiffusion

# A range below this share of the values is rounding: the map is flat.
FLAT = 1e-5


class LatentDepth2ImageDiffusion(LatentFinetuneDiffusion):
    """Latent diffusion with a depth map beside x_t.

    Args:
        depth_stage_config: network that estimates the map of an image prepared for it; None where maps are
            always given, and after loading a file that holds no such network.
    """

    OPTIONAL_PARTS = ("depth_model",)

    def __init__(self, depth_stage_config: nn.Module | None = None, **latent_diffusion) -> None:
        super().__init__(**latent_diffusion)
        self.depth_model = depth_stage_config

    def estimate_depth(self, images: Tensor) -> Tensor:
        """Return the inverse depth (b, 1, h', w') of images (b, 3, H, W) in [-1, 1], at a size of its own.

        Raises:
            ConfigError: the model has no depth network.
        """
        if self.depth_model is None:
            raise ConfigError("this model was loaded without a depth network; give it a depth map")
        return self.depth_model.depth(images)

    def conditioning(self, context: Tensor, depth: Tensor, size: tuple[int, int]) -> Cond:
        """Return what the UNet is given with x_t and t.

        Args:
            context: (b, n, width) encoded prompts.
            depth: (b or 1, 1, H, W) inverse depth in any unit, at any size.
            size: height and width of the latents.
        """
        return self.hybrid(context, concat_depth(depth, size))


def concat_depth(depth: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring inverse depth (b, 1, H, W) to the latents' size and to [-1, 1]."""
    return normalise_depth(F.interpolate(depth.float(), size=size, mode="bicubic", align_corners=False))


def normalise_depth(depth: Tensor) -> Tensor:
    """Stretch each map of (b, 1, h, w) to [-1, 1].

    A flat map becomes -1, which is what training made of it; the reference script divides by zero there.
    """
    low = depth.amin(dim=(1, 2, 3), keepdim=True)
    extent = depth.amax(dim=(1, 2, 3), keepdim=True) - low
    flat = extent <= FLAT * depth.abs().amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(flat, -1.0, 2.0 * (depth - low) / torch.where(flat, 1.0, extent) - 1.0)
