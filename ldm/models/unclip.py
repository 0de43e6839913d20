"""Images like an image: the UNet is given a CLIP image embedding (arXiv 2204.06125, section 2.1).

    c_adm = [z, emb(l)]      z: the embedding at noise level l (ldm.models.noise_augmentation)

It enters as a label, with the text. Guidance's unconditional half is given all zeros.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ldm.diffusion.cond import Cond
from ldm.errors import InputError
from ldm.models.latent_diffusion import LatentDiffusion


class ImageEmbeddingConditionedLatentDiffusion(LatentDiffusion):
    """Latent diffusion conditioned on text and on the embedding of an image.

    Args:
        embedder_config: image encoder, images (b, 3, H, W) in [-1, 1] -> (b, D).
        noise_aug_config: what noises the embedding; None hands it over as it is.
    """

    def __init__(
        self, embedder_config: nn.Module, noise_aug_config: nn.Module | None = None, **latent_diffusion
    ) -> None:
        super().__init__(**latent_diffusion)
        self.embedder = embedder_config
        self.noise_augmentor = noise_aug_config

    def conditioning(self, context: Tensor, label: Tensor) -> Cond:
        """Return what the UNet is given with x_t and t.

        Args:
            context: (b, n, width) encoded prompts.
            label: (b or 1, width), of `embedding_conditioning` or `mix`.
        """
        return Cond(context, label=label.expand(len(context), -1))

    def unconditional(self, cond: Cond, context: Tensor) -> Cond:
        """Return guidance's other half of `cond`: the text is `context`, the embedding zeros."""
        return replace(super().unconditional(cond, context), label=torch.zeros_like(cond.label))

    def embedding_conditioning(
        self, embedding: Tensor, noise_level: Tensor | int = 0, noise: Tensor | None = None
    ) -> Tensor:
        """Return the label of embeddings (b, D), noised to `noise_level`, with the level's own embedding.

        Args:
            noise: (b, D); drawn on the embeddings' device if None.
        """
        if self.noise_augmentor is None:
            return embedding
        return torch.cat(self.noise_augmentor(embedding, noise_level, noise), dim=1)

    def mix(self, labels: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Return the weighted mean of the labels (b, width) of several images.

        Raises:
            InputError: not one weight a label, or weights whose sum is 0.
        """
        total = sum(weights)
        if len(labels) != len(weights) or not labels or total == 0:
            raise InputError(
                f"{len(labels)} embeddings with the weights {list(weights)}; expected one weight for each, "
                "and a sum that is not 0"
            )
        return sum(weight * label for weight, label in zip(weights, labels, strict=True)) / total

    def renoise(self, label: Tensor, noise_level: Tensor | int, noise: Tensor | None = None) -> Tensor:
        """Noise the embedding inside a label once more, and give it that level: for mixes."""
        width = label.shape[1] if self.noise_augmentor is None else self.noise_augmentor.data_mean.shape[1]
        return self.embedding_conditioning(label[:, :width], noise_level, noise)
