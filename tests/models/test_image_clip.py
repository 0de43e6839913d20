"""CLIP's image towers against open_clip, the published names and the reference's own numbers."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

from golden_cases import Case, cases, manifest
from ldm.config import instantiate
from ldm.errors import ConfigError, InputError
from ldm.models.image_clip import MEAN, STD, ClipImageEmbedder, FrozenOpenCLIPImageEmbedder, preprocess

TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 56, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 16, "width": 16, "heads": 2, "layers": 2},
}
CLASSES = {"h": FrozenOpenCLIPImageEmbedder, "l": ClipImageEmbedder}
TARGET = "ldm.modules.encoders.modules."
NODES = {
    "h": {"target": TARGET + "FrozenOpenCLIPImageEmbedder"},
    "l": {"target": TARGET + "ClipImageEmbedder", "params": {"model": "ViT-L/14"}},
}


def tiny(tmp_path: Path, variant: str, description: dict = TINY):
    """Return an embedder with random weights of an architecture file; OpenAI's models have quick-gelu."""
    file = tmp_path / "tiny.json"
    file.write_text(json.dumps({**description, "quick_gelu": variant == "l"}))
    embedder = CLASSES[variant](str(file))
    for parameter in embedder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return embedder


@pytest.mark.parametrize("variant", CLASSES)
def test_names_and_shapes_are_the_published_ones(variant: str):
    with torch.device("meta"):
        embedder = instantiate(NODES[variant])
    published = manifest(f"v2-1-stable-unclip-{variant}")
    ours = {
        "embedder." + name: (tuple(x.shape), str(x.dtype).removeprefix("torch."))
        for name, x in embedder.state_dict().items()
    }
    assert ours == {name: what for name, what in published.items() if name.startswith("embedder.")}
    assert sum(p.numel() for p in embedder.parameters()) == {"h": 683_800_065, "l": 427_616_513}[variant]
    assert not any(p.requires_grad for p in embedder.parameters()) and not embedder.training
    assert (embedder.side, embedder.embed_dim) == (224, {"h": 1024, "l": 768}[variant])


@pytest.mark.parametrize("variant", CLASSES)
def test_equals_open_clip(variant: str, tmp_path: Path):
    embedder = tiny(tmp_path, variant)
    theirs = open_clip.CLIP(**TINY, quick_gelu=variant == "l").eval()
    weights = theirs.state_dict() | embedder.model.state_dict()
    theirs.load_state_dict(weights)
    images = torch.rand(3, 3, 90, 40) * 2 - 1
    with torch.no_grad():
        want = theirs.encode_image(embedder.preprocess(images), normalize=False)
    torch.testing.assert_close(embedder(images), want, atol=1e-5, rtol=1e-4)
    assert torch.equal(embedder.encode(images), embedder(images))


def test_the_two_differ_in_the_activation(tmp_path: Path):
    h, ell = tiny(tmp_path, "h"), tiny(tmp_path, "l")
    ell.model.visual.load_state_dict(h.model.visual.state_dict())
    images = torch.rand(1, 3, 56, 56)
    assert not torch.allclose(h(images), ell(images), atol=1e-3)


@pytest.mark.parametrize("variant", CLASSES)
def test_only_the_weights_that_are_named_unused_are_unused(variant: str, tmp_path: Path):
    embedder = tiny(tmp_path, variant)
    images = torch.rand(1, 3, 30, 70)
    before = embedder(images)
    for name in embedder.model.unused_parameters():
        embedder.model.get_parameter(name).data.fill_(float("nan"))
    assert torch.equal(embedder(images), before)
    assert {name.split(".")[0] for name, _ in embedder.model.named_parameters()} > {"visual", "ln_final"}


def resize_matrix(length: int, side: int, blurred: bool) -> np.ndarray:
    """Return what resizing does along one axis: bicubic (a = -0.75), aligned corners, Gaussian."""
    a, matrix = -0.75, np.zeros((side, length))
    for i in range(side):
        x = i * (length - 1) / (side - 1)
        for tap in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            d = abs(x - tap)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(tap, 0), length - 1)] += near if d <= 1 else far
    if not blurred:
        return matrix
    sigma = max(length / side, 1)
    radius = int(4 * sigma) // 2
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    blur = np.zeros((length, length))
    for i in range(length):
        for offset, weight in enumerate(weights / weights.sum(), start=i - radius):
            reflected = abs(offset) if offset < length else 2 * (length - 1) - offset
            blur[i, reflected] += weight
    return matrix @ blur


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(90, 60), (20, 17), (56, 56), (201, 30), (31, 133), (5, 57)])
def test_preprocessing_by_definition(size: tuple[int, int], antialias: bool):
    images = torch.rand(1, 3, *size) * 2 - 1
    blurred = antialias and max(size) > 56
    rows, columns = (resize_matrix(length, 56, blurred) for length in size)
    resized = np.einsum("ih,bchw,jw->bcij", rows, images.double().numpy(), columns)
    want = ((resized + 1) / 2 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    got = preprocess(images, 56, antialias)
    torch.testing.assert_close(got.double(), torch.from_numpy(want), atol=2e-4, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (2, 999), (999, 2), (3, 3), (223, 227)])
def test_a_plain_picture_of_any_size_stays_plain(size: tuple[int, int]):
    pixels = preprocess(torch.full((1, 3, *size), 0.25), 224)
    want = (0.625 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(pixels, want[:, None, None].expand(1, 3, 224, 224), atol=2e-5, rtol=0)


def if_there(kind: str) -> list[Case]:
    """Return the golden cases of a kind that the set shipped with the repository leaves out."""
    try:
        return cases(kind)
    except LookupError:
        return []


@pytest.mark.parametrize("case", if_there("image_openclip"), ids=lambda case: case.name)
def test_golden_embeddings(case: Case, tmp_path: Path):
    embedder = tiny(tmp_path, "h", case.config["open_clip_config"])
    embedder.model.visual.load_state_dict(case.weights())
    images = case.inputs["image_uint8"].float() / 127.5 - 1
    pixels = embedder.preprocess(images)
    statistics = torch.stack((pixels.mean(), pixels.std()))
    case.check_all(
        {
            "pixels_every_7th": pixels[:, :, ::7, ::7],
            "pixels_mean_std": statistics,
            "embedding": embedder(images),
        }
    )


def test_half_precision_weights_give_back_the_dtype_of_the_picture(tmp_path: Path):
    embedder = tiny(tmp_path, "h")
    images = torch.rand(2, 3, 56, 56)
    want = embedder(images)
    got: Tensor = embedder.bfloat16()(images)
    assert got.dtype == torch.float32
    assert (got - want).abs().mean() < 0.05 * want.abs().mean()


def test_the_architecture_file_may_lie_beside_the_yaml(tmp_path: Path):
    from ldm.config import load_config

    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / "config.yaml").write_text(
        f"embedder: {{target: {TARGET}ClipImageEmbedder, params: {{model: tiny}}}}\n"
    )
    assert instantiate(load_config(tmp_path / "config.yaml").embedder).embed_dim == 24


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64)])
def test_other_shapes_are_refused(shape: tuple[int, ...], tmp_path: Path):
    with pytest.raises(InputError, match="expected \\(batch, 3, height, width\\)"):
        tiny(tmp_path, "h")(torch.zeros(shape))


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="ViT-L-99"):
        ClipImageEmbedder("ViT-L/99")
    with pytest.raises(ConfigError, match="pooled"):
        FrozenOpenCLIPImageEmbedder(layer="last")
