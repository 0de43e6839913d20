"""Train a small CLIP; its text tower then conditions a diffusion model (arXiv 2103.00020, figure 3).

    logits = exp(s) f(image) g(text)^T,     L = (CE over rows + CE over columns) / 2,     exp(s) <= 100

Made-up captions repeat within a batch. Pairs with the same caption are all right answers, so the target
spreads evenly over them. The image tower stays out of the diffusion model, but it is the CLIP score for what
that model draws.
"""

import logging
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.clip_files import architecture
from ldm.errors import ConfigError
from ldm.loading import load_part
from ldm.models.image_clip import CLIPModel
from ldm.models.text_openclip import FrozenOpenCLIPEmbedder
from ldm.training.exporting import export_config, export_weights
from ldm.training.module import TrainingModule
from ldm.training.options import ClipOptions, TrainOptions
from ldm.training.run_folder import Shown
from ldm.training.seeding import generator

log = logging.getLogger(__name__)

LOGIT_SCALE_MAX = math.log(100.0)


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Return the symmetric cross entropy of unit features (b, d); `same` (b, b) marks equal captions."""
    logits = scale * image_features @ text_features.T  # (b, b)
    target = same.float() / same.float().sum(dim=1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def retrieval(image_features: Tensor, text_features: Tensor, answers: Tensor, k: int) -> float:
    """Return how often the right text is among the k texts nearest to its image."""
    nearest = (image_features @ text_features.T).topk(min(k, len(text_features)), dim=1).indices
    return float((nearest == answers[:, None]).any(dim=1).float().mean())


class ClipTraining(TrainingModule):
    """Image and text towers of an open_clip architecture.

    Args:
        model: the text encoder as a diffusion model will hold it; gives architecture and tokenizer.
    """

    def __init__(self, model: FrozenOpenCLIPEmbedder, train: TrainOptions, options: ClipOptions) -> None:
        super().__init__(train)
        if not isinstance(model, FrozenOpenCLIPEmbedder):
            raise ConfigError(
                f"model: a CLIP is trained from FrozenOpenCLIPEmbedder, got {type(model).__name__}"
            )
        config = architecture(model.arch)
        if "vision_cfg" not in config:
            raise ConfigError(f"{model.arch}: has no vision_cfg, so there is no image tower to train")
        self.options = options
        self.text_encoder = model
        self.clip = CLIPModel(config, text_blocks=True)
        self.image_size = config["vision_cfg"]["image_size"]
        if options.ckpt:
            load_part(self.clip, options.ckpt, "")

    def groups(self) -> dict[str, nn.Module]:
        return {"clip": self.clip}

    def compile_networks(self) -> None:
        self.clip.visual.compile()
        self.clip.transformer.compile()

    def encode_images(self, images: Tensor) -> Tensor:
        """Return unit features (b, d) of images of any size; they are shrunk by averaging over areas."""
        if images.shape[2:] != (self.image_size, self.image_size):
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="area")
        return F.normalize(self.clip.encode_image(images), dim=-1).float()

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Return unit features (b, d) of token ids (b, n)."""
        return F.normalize(self.clip.encode_text(tokens), dim=-1).float()

    def backward_losses(self, batch: dict[str, Any]) -> dict[str, Any]:
        tokens = self.text_encoder.tokenize(batch["captions"]).to(self.device)
        images, texts = self.encode_images(batch["images"]), self.encode_texts(tokens)
        if self.trainer.world_size > 1:
            images, texts = (self.all_gather(x, sync_grads=True).flatten(0, 1) for x in (images, texts))
            tokens = self.all_gather(tokens).flatten(0, 1)
        same = (tokens[:, None] == tokens[None]).all(dim=2)  # (b, b)
        with torch.autocast(self.device.type, enabled=False):
            scale = self.clip.logit_scale.exp()
            loss = contrastive_loss(images, texts, scale, same)
            right = (images @ texts.T).detach().argmax(dim=1, keepdim=True)
        self.loss_backward(loss)
        accuracy = same.gather(1, right).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy, "logit_scale": scale.detach()}

    def after_step(self) -> None:
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0.0, LOGIT_SCALE_MAX)

    # Figures and images

    @torch.no_grad()
    def features(self, data: Any, count: int) -> tuple[Tensor, list[str], Tensor, Tensor, Tensor]:
        """Return images, their captions, both's features, and each image's place in the captions' features.

        Captions are encoded once each.
        """
        self.clip.eval()
        images, captions = data.batch(generator(0, "validation"), count)
        distinct = list(dict.fromkeys(captions))
        tokens = self.text_encoder.tokenize(distinct).to(self.device)
        image_features = self.encode_images(images.to(self.device))
        text_features = self.encode_texts(tokens)
        self.clip.train()
        answers = torch.tensor([distinct.index(caption) for caption in captions], device=self.device)
        return images, captions, image_features, text_features, answers

    def evaluate(self, data: Any) -> dict[str, float]:
        _, _, images, texts, answers = self.features(data, self.options.retrieval_count)
        return {f"val_recall_at_{k}": retrieval(images, texts, answers, k) for k in (1, 5)}

    def sample(self, data: Any) -> Shown:
        """Return rows of 8: a caption's own image, then the seven that its text is nearest to."""
        images, captions, image_features, text_features, answers = self.features(data, 64)
        rows, texts = [], []
        for index in range(8):
            ranked = (image_features @ text_features[answers[index]]).topk(7).indices.cpu()
            rows.append(torch.cat([images[index : index + 1], images[ranked]]))
            texts += [captions[index], *(f"nearest, {place}" for place in range(1, 8))]
        return Shown(torch.cat(rows), texts, columns=8)

    # State

    def trained_modules(self) -> dict[str, nn.Module | None]:
        return {"clip": self.clip}

    def export(self, folder: Path, config: dict[str, Any], data: Any) -> Path:
        """Write the text encoder as model.safetensors, both towers as clip.safetensors (open_clip names)."""
        towers = self.clip.state_dict()
        text = {key: value for key, value in towers.items() if not key.startswith("visual.")}
        self.text_encoder.model.load_state_dict(text)
        about = {"steps": self.step, "weights": "raw"}
        dtype = self.train_options.export_dtype
        export_weights(folder / "clip.safetensors", towers, dtype, about)
        path = folder / "model.safetensors"
        export_weights(path, self.text_encoder.state_dict(), dtype, about)
        export_config(
            folder / "model.yaml", config["model"], "The text encoder; clip.safetensors has both towers."
        )
        return path
