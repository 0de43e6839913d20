"""unCLIP's image encoder: transformers' model from our weights gives our embedding, and names come back."""

import json
from pathlib import Path

import pytest
import torch
from diffusers_models import noise, same, shapes
from torch import Tensor

from golden_cases import manifest
from ldm.checkpoint.layouts import UNUSED, ldm_to_parts, part_to_ldm, to_ldm
from ldm.errors import WrongModelError
from ldm.models.image_clip import ClipImageEmbedder, FrozenOpenCLIPImageEmbedder

PREFIX = "embedder."
SIZES = {
    "h": dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, projection_dim=1024),
    "l": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, projection_dim=768),
}
ACTIVATIONS = {"h": "gelu", "l": "quick_gelu"}


def transformers_model(variant: str, **config):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = {"num_attention_heads": 16, "image_size": 224, "patch_size": 14, **config}
    config = CLIPVisionConfig(hidden_act=ACTIVATIONS[variant], **config)
    return CLIPVisionModelWithProjection(config).eval()


def embedder(variant: str, tmp_path: Path):
    arch = tmp_path / "tiny.json"
    description = {
        "embed_dim": 24,
        "quick_gelu": variant == "l",
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 16, "width": 16, "heads": 2, "layers": 2},
    }
    arch.write_text(json.dumps(description))
    return {"h": FrozenOpenCLIPImageEmbedder, "l": ClipImageEmbedder}[variant](str(arch))


def with_tower(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the names the prefix that every release reads."""
    return {
        name if name.startswith(("vision_model.", "visual_projection.")) else "vision_model." + name: x
        for name, x in tensors.items()
    }


@pytest.mark.parametrize("variant", SIZES)
def test_transformers_names_are_the_published_ones_of_the_image_tower(variant: str):
    layout = {
        name: shape
        for name, (shape, _) in manifest(f"v2-1-stable-unclip-{variant}").items()
        if name.startswith(PREFIX)
    }
    with torch.device("meta"):
        theirs = with_tower(transformers_model(variant, **SIZES[variant]).state_dict())
        file = {name: torch.empty(shape) for name, shape in layout.items()}
    visual = {name: shape for name, shape in layout.items() if ".visual." in name}
    assert shapes(part_to_ldm("image_encoder", theirs)) == visual
    parts = ldm_to_parts(file)
    assert shapes(parts["image_encoder"]) == shapes(theirs)
    assert parts[UNUSED].keys() == layout.keys() - visual.keys()


@pytest.mark.parametrize("variant", SIZES)
def test_transformers_gives_our_embedding(variant: str, tmp_path: Path):
    ours = embedder(variant, tmp_path)
    weights = {name: x if x.ndim == 0 else 0.4 * x for name, x in noise(ours).items()}
    ours.load_state_dict(weights)
    theirs = transformers_model(
        variant, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        image_size=28, projection_dim=24,
    )  # fmt: skip
    published = {PREFIX + name: x for name, x in ours.state_dict().items()}
    renamed = ldm_to_parts(published)["image_encoder"]
    expected_names = theirs.state_dict().keys()
    theirs.load_state_dict(
        {name: renamed[name if name in renamed else "vision_model." + name] for name in expected_names}
    )
    images = torch.rand(2, 3, 28, 28) * 2 - 1
    with torch.no_grad():
        want = theirs(ours.preprocess(images)).image_embeds
    torch.testing.assert_close(ours(images), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", SIZES)
def test_there_and_back(variant: str, tmp_path: Path):
    file = noise(embedder(variant, tmp_path), PREFIX)
    parts = ldm_to_parts(file)
    assert set(parts) == {"image_encoder", UNUSED}
    assert any("token_embedding" in name for name in parts[UNUSED])
    assert same(to_ldm(parts), file)
    visual = {name: x for name, x in file.items() if ".visual." in name}
    assert same(to_ldm({"": parts["image_encoder"]}), visual)


def test_position_ids_of_old_files_are_left_out(tmp_path: Path):
    theirs = ldm_to_parts(noise(embedder("h", tmp_path), PREFIX))["image_encoder"]
    old = theirs | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    assert same(part_to_ldm("image_encoder", old), part_to_ldm("image_encoder", theirs))


def test_other_networks_are_refused(tmp_path: Path):
    theirs = ldm_to_parts(noise(embedder("h", tmp_path), PREFIX))["image_encoder"]
    other = theirs | {"vision_model.head.probe": torch.ones(1)}
    with pytest.raises(WrongModelError, match="the image encoder has .*head.probe"):
        part_to_ldm("image_encoder", other)
