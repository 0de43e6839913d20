"""CLIP's image towers, which condition unCLIP: OpenCLIP ViT-H/14 and OpenAI's ViT-L/14.

An image is encoded to one projected vector that is not normalised (arXiv 2103.00020, section 2.4; unCLIP:
arXiv 2204.06125). Images are preprocessed as in the reference: if a side is reduced, both are blurred by a
Gaussian whose sigma is the factor, at least 1. The image is then resized to a square, ignoring its aspect
ratio, by bicubic interpolation with aligned corners, and normalised by CLIP's mean and standard deviation.

Sizes come from open_clip's descriptions, like those of the text tower; nothing is downloaded.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.clip_files import architecture
from ldm.errors import ConfigError, InputError
from ldm.models.clip_blocks import FrozenEmbedder, TextSizes, VisionSizes, VisionTower
from ldm.models.text_openclip import TextTower

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class CLIPModel(TextTower):
    """A CLIP model: the image tower `visual` and the text tower, whose blocks unCLIP-H leaves out."""

    def __init__(self, config: dict, text_blocks: bool) -> None:
        embed_dim, quick_gelu = config["embed_dim"], config.get("quick_gelu", False)
        text, vision = TextSizes.read(config, "text_cfg"), VisionSizes.read(config, "vision_cfg")
        super().__init__(embed_dim, text if text_blocks else replace(text, layers=0), quick_gelu)
        self.visual = VisionTower(embed_dim, vision, quick_gelu)

    def unused_parameters(self) -> list[str]:
        """Name the parameters that images never use: the text tower, which diffusers folders leave out."""
        return [name for name, _ in self.named_parameters() if not name.startswith("visual.")]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (b, 3, side, side) to (b, embed_dim)."""
        return self.visual(pixels.to(self.visual.proj.dtype))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode token ids (b, n) to (b, embed_dim): the projected state of the end token (largest id)."""
        end = torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)
        return self(tokens)[end] @ self.text_projection


class CLIPImageEmbedder(FrozenEmbedder):
    """Images (b, 3, h, w) in -1..1 -> (b, embed_dim); the base of the two classes of the reference."""

    def __init__(self, config: dict, text_blocks: bool, antialias: bool, device: str | None) -> None:
        super().__init__()
        self.model = CLIPModel(config, text_blocks)
        self.side: int = config["vision_cfg"].get("image_size", 224)
        self.embed_dim: int = config["embed_dim"]
        self.antialias = antialias
        self.freeze()
        self.place(device)

    def preprocess(self, images: Tensor) -> Tensor:
        """Return normalised pixels (b, 3, side, side) in float32 of images of any size, in -1..1."""
        return preprocess(images, self.side, self.antialias)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (b, 3, h, w) in -1..1 to (b, embed_dim), in the dtype of `images`.

        Raises:
            InputError: the images have another shape.
        """
        return self.model.encode_image(self.preprocess(images)).to(images.dtype)


class FrozenOpenCLIPImageEmbedder(CLIPImageEmbedder):
    """The image tower of unCLIP-H; of the text tower only the parameters outside its blocks are kept.

    Args:
        arch: an open_clip architecture name, or the path of a JSON description.
        version: name of the pretrained weights; kept for information, never downloaded.
        device: device of the module; None leaves it where it was built.
        layer: only "pooled", one vector per image.
        antialias: blur images before they are reduced.

    Raises:
        ConfigError: arch or layer is unknown.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        version: str | None = "laion2b_s32b_b79k",
        device: str | None = None,
        layer: str = "pooled",
        antialias: bool = True,
    ) -> None:
        if layer != "pooled":
            raise ConfigError(f"FrozenOpenCLIPImageEmbedder: layer {layer!r}; expected 'pooled'")
        super().__init__(architecture(arch), text_blocks=False, antialias=antialias, device=device)
        self.arch = arch
        self.version = version


class ClipImageEmbedder(CLIPImageEmbedder):
    """The image tower of unCLIP-L, as part of the complete OpenAI CLIP model.

    Args:
        model: OpenAI's name of the architecture, such as "ViT-L/14", or the path of a JSON description.
        device: device of the module; None leaves it where it was built.
        antialias: blur images before they are reduced.

    Raises:
        ConfigError: the model is unknown.
    """

    def __init__(self, model: str = "ViT-L/14", device: str | None = None, antialias: bool = True) -> None:
        # OpenAI's models use quick-gelu; open_clip's names without a suffix mean the exact gelu.
        arch = model if model.endswith(".json") else model.replace("/", "-") + "-quickgelu"
        super().__init__(architecture(arch), text_blocks=True, antialias=antialias, device=device)
        self.name = model


def preprocess(images: Tensor, side: int = 224, antialias: bool = True) -> Tensor:
    """Resize images (b, 3, h, w) in -1..1 to `side` x `side` and normalise them for CLIP, in float32."""
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise InputError(
            f"image embedder: got images of shape {tuple(images.shape)}; expected (batch, 3, height, width)"
        )
    x = images.float()
    factors = [length / side for length in x.shape[-2:]]
    if antialias and max(factors) > 1:
        for dim, factor in zip((-2, -1), factors, strict=True):
            x = blur(x, dim, sigma=max(factor, 1.0))
    x = F.interpolate(x, (side, side), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
    return ((x + 1) / 2 - mean) / std


def blur(x: Tensor, dim: int, sigma: float) -> Tensor:
    """Convolve (b, c, h, w) along `dim` (-2 or -1) with a Gaussian of about 4 sigma taps, an odd number.

    The border is padded by reflection, or by replication if the side is too short.
    """
    radius = int(4 * sigma) // 2
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    b, c, h, w = x.shape
    padding, kernel = (
        ((0, 0, radius, radius), kernel[:, None]) if dim == -2 else ((radius, radius, 0, 0), kernel[None])
    )
    padded = F.pad(x, padding, mode="reflect" if radius < x.shape[dim] else "replicate")
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel[None, None]).reshape(b, c, h, w)
