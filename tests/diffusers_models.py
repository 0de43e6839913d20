"""The models of diffusers and transformers that the published checkpoints correspond to, at any size."""

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor, nn

SD1 = dict(cross_attention_dim=768, attention_head_dim=8)
SD2 = dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
UNETS: dict[str, dict[str, Any]] = {
    "v1-inference": SD1,
    "v2-inference": SD2,
    "v2-inference-v": SD2,
    "v2-inpainting": dict(SD2, in_channels=9),
    "v2-midas": dict(SD2, in_channels=5),
    "x4-upscaling": dict(
        SD2, in_channels=7, attention_head_dim=8, block_out_channels=(256, 512, 512, 1024),
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
        up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
        only_cross_attention=(True, True, True, False), num_class_embeds=1000,
    ),
    "v2-1-stable-unclip-h": dict(
        SD2, class_embed_type="projection", projection_class_embeddings_input_dim=2048
    ),
    "v2-1-stable-unclip-l": dict(
        SD2, class_embed_type="projection", projection_class_embeddings_input_dim=1536
    ),
    "cldm_v15": SD1,
    "cldm_v21": SD2,
}  # fmt: skip
TEXT = {
    "sd1": dict(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, hidden_act="quick_gelu",
    ),
    "sd2": dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
        projection_dim=512, hidden_act="gelu",
    ),
}  # fmt: skip
VISION = {
    "v2-1-stable-unclip-h": dict(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16,
        patch_size=14, projection_dim=1024,
    ),
    "v2-1-stable-unclip-l": dict(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        patch_size=14, projection_dim=768,
    ),
}  # fmt: skip
DPT_HYBRID = dict(
    is_hybrid=True, use_auxiliary_head=False, image_size=384, patch_size=16, neck_ignore_stages=[0, 1],
    backbone_out_indices=[2, 5, 8, 11], backbone_featmap_shape=[1, 1024, 24, 24], readout_type="project",
    neck_hidden_sizes=[256, 512, 768, 768], reassemble_factors=[1, 1, 1, 0.5], fusion_hidden_size=256,
    hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
)  # fmt: skip


def unet(config: dict[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**config)


def vae(widths: tuple[int, ...] = (128, 256, 512, 512), **config: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        **{"layers_per_block": 2, **config},
    )


def text_encoder(config: dict[str, Any]) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**config))


def text_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give transformers' tensors the prefix that releases before 5 save, whatever this one does."""
    return {"text_model." + name.removeprefix("text_model."): x for name, x in tensors.items()}


def controlnet(config: dict[str, Any]) -> nn.Module:
    from diffusers import ControlNetModel

    return ControlNetModel(**config)


def image_encoder(config: dict[str, Any]) -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(CLIPVisionConfig(**config))


def depth_estimator(config: dict[str, Any]) -> nn.Module:
    from transformers import DPTConfig, DPTForDepthEstimation

    return DPTForDepthEstimation(DPTConfig(**config))


@functools.cache
def parts_of(layout: str) -> dict[str, dict[str, Tensor]]:
    """Return the state of every part that diffusers has of a published layout, full size, without memory."""
    family = "sd1" if UNETS[layout]["cross_attention_dim"] == 768 else "sd2"
    with torch.device("meta"):
        parts = {
            "unet": unet(UNETS[layout]).state_dict(),
            "vae": vae((128, 256, 512) if layout == "x4-upscaling" else (128, 256, 512, 512)).state_dict(),
            "text_encoder": text_names(text_encoder(TEXT[family]).state_dict()),
        }
        if layout.startswith("cldm"):
            parts["controlnet"] = controlnet(UNETS[layout]).state_dict()
        if layout in VISION:
            parts["image_encoder"] = image_encoder(VISION[layout]).state_dict()
        if layout == "v2-midas":
            parts["depth_estimator"] = depth_estimator(DPT_HYBRID).state_dict()
    return parts


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in tensors.items()}


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    """Tell whether names, dtypes, shapes and bits agree."""
    return got.keys() == want.keys() and all(
        got[name].dtype == x.dtype and torch.equal(got[name], x) for name, x in want.items()
    )


@contextlib.contextmanager
def seeded(seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def noise(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return random numbers for every tensor of `module`, so that no two of them are alike."""
    with seeded():
        return {
            prefix + name: torch.randn(x.shape, dtype=x.dtype) if x.is_floating_point() else x
            for name, x in module.state_dict().items()
        }
