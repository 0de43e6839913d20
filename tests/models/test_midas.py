"""The depth network against transformers' and the published names; its input against OpenCV."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_cases import Case, cases, manifest
from ldm.checkpoint.layouts import depth as names
from ldm.config import instantiate
from ldm.errors import ConfigError, InputError
from ldm.models.midas import MiDaSInference, network_size, preprocess, same_padding

NARROW = dict(
    stem=16, channels=[32, 64, 96], depths=[1, 2, 2], groups=4, width=48, depth=4, num_heads=4,
    taps=[1, 3], grid=4, classes=5, features=24,
)  # fmt: skip


def transformers_model():
    """Return transformers' network of the same sizes."""
    from transformers import BitConfig, DPTConfig, DPTForDepthEstimation

    backbone = BitConfig(
        embedding_size=16, hidden_sizes=[32, 64, 96], depths=[1, 2, 2], num_groups=4, layer_type="bottleneck",
        global_padding="same", embedding_dynamic_padding=True, out_features=["stage1", "stage2", "stage3"],
    )  # fmt: skip
    return DPTForDepthEstimation(
        DPTConfig(
            is_hybrid=True, backbone_config=backbone, hidden_size=48, intermediate_size=192,
            num_hidden_layers=4, num_attention_heads=4, image_size=64, patch_size=16, layer_norm_eps=1e-6,
            backbone_out_indices=[0, 1, 1, 3], backbone_featmap_shape=[1, 96, 4, 4], fusion_hidden_size=24,
            neck_hidden_sizes=[32, 64, 48, 48], neck_ignore_stages=[0, 1], readout_type="project",
            reassemble_factors=[1, 1, 1, 0.5],
        )
    ).eval()  # fmt: skip


def weights_of(model: torch.nn.Module, scale: Callable[[str], float]) -> dict[str, Tensor]:
    """Return random weights that keep the size of activations, times `scale` of their name."""
    return {
        name: scale(name) * (
            torch.randn_like(x) * x[0].numel() ** -0.5 if x.ndim > 1
            else 0.2 * torch.randn_like(x) + ("norm" in name and name.endswith("weight"))
        )
        for name, x in model.state_dict().items()
    }  # fmt: skip


def both(scale: Callable[[str], float] = lambda name: 1.0) -> tuple[MiDaSInference, torch.nn.Module]:
    theirs, ours = transformers_model(), MiDaSInference(sizes=NARROW)
    weights = weights_of(theirs, scale)
    if scale("head.head.4.bias") == 1:
        weights["head.head.4.bias"] += 2                     # else half of the depths are cut off at 0
    theirs.load_state_dict(weights)
    head = {name: x for name, x in ours.state_dict().items() if ".model.head." in name}
    ours.load_state_dict(names.to_ldm(weights) | head)
    return ours, theirs


def expected(theirs: torch.nn.Module, x: Tensor) -> Tensor:
    """Run transformers' network at any size: as it is, the hybrid one takes only squares of its own."""
    theirs.dpt.embeddings.image_size = tuple(x.shape[-2:])
    grid, neck = [side // 16 for side in x.shape[-2:]], type(theirs.neck)
    theirs.neck.forward = lambda maps, *_: neck.forward(theirs.neck, maps, *grid)
    with torch.no_grad():
        return theirs(x).predicted_depth[:, None]


@pytest.mark.few(2)
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 160), (64, 32), (224, 96)])
def test_equals_transformers(size: tuple[int, int]):
    ours, theirs = both()
    x = torch.randn(2, 3, *size)
    want, got = expected(theirs, x), ours(x)
    assert got.shape == (2, 1, *size) and want.std() > 0.01
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def small_tokens(name: str) -> float:
    """Make the tokens small enough for the layer norms' epsilon, and undo it where they are read."""
    if name.startswith("neck.reassemble_stage.readout_projects.") and name.endswith("weight"):
        return 1e3
    return 1e-3 if name.startswith("dpt.") and ".bit." not in name and "norm" not in name and (
        "embeddings" in name or ".output." in name
    ) else 1.0  # fmt: skip


EPSILONS = {
    "convolution kernels": lambda name: 2e-4 if ".bit." in name and "conv" in name else 1.0,
    "group norms": lambda name: 1.0,
    "layer norms": small_tokens,
}


@pytest.mark.parametrize("what", EPSILONS)
def test_equals_transformers_where_the_epsilons_matter(what: str):
    ours, theirs = both(EPSILONS[what])
    x = torch.randn(1, 3, 64, 96) * (3e-4 if what == "group norms" else 1.0)
    want = expected(theirs, x)
    torch.testing.assert_close(ours(x), want, atol=1e-5 * float(want.abs().max()), rtol=1e-4)


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        model = instantiate({"target": "ldm.modules.midas.api.MiDaSInference",
                             "params": {"model_type": "dpt_hybrid"}})  # fmt: skip
    prefix = "depth_model."
    published = manifest("v2-midas")
    ours = {
        prefix + name: (tuple(x.shape), str(x.dtype).removeprefix("torch."))
        for name, x in model.state_dict().items()
    }
    assert list(ours.items()) == [item for item in published.items() if item[0].startswith(prefix)]
    assert sum(p.numel() for p in model.parameters()) == 123_146_985
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_only_the_weights_that_are_named_unused_are_unused():
    model = MiDaSInference(sizes=NARROW)
    x = torch.randn(1, 3, 64, 96)
    before = model(x)
    with torch.no_grad():
        for name in model.model.pretrained.model.unused_parameters():
            model.model.pretrained.model.get_parameter(name).fill_(float("nan"))
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("size", "want"),
    [
        ((512, 512), (384, 384)), ((512, 768), (384, 576)), ((480, 640), (384, 512)),
        ((256, 256), (384, 384)), ((200, 300), (256, 384)), ((1080, 1920), (384, 672)),
        ((50, 2000), (32, 384)), ((1, 1), (384, 384)), ((3, 997), (32, 384)), ((3, 383), (32, 384)),
    ],
)  # fmt: skip
def test_size_at_which_the_network_looks(size: tuple[int, int], want: tuple[int, int]):
    assert network_size(*size) == want


def test_every_size_becomes_one_that_the_network_takes():
    for height in (1, 31, 97, 383, 384, 385, 1021):
        for width in (1, 64, 211, 384, 769):
            got, turned = network_size(height, width), network_size(width, height)
            assert all(side % 32 == 0 and side > 0 for side in got)
            assert got == turned[::-1] or abs(384 / height - 1) == abs(384 / width - 1)


@pytest.mark.parametrize("size", [(64, 96), (512, 512), (480, 641), (733, 401), (37, 23), (5, 3)])
def test_preprocessing_equals_opencv(size: tuple[int, int]):
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).random((*size, 3), dtype=np.float32) * 2 - 1
    got = preprocess(torch.from_numpy(image).permute(2, 0, 1)[None])
    height, width = network_size(*size)
    resized = cv2.resize((image + 1) / 2, (width, height), interpolation=cv2.INTER_CUBIC)
    want = torch.from_numpy((resized - 0.5) / 0.5).permute(2, 0, 1)[None]
    torch.testing.assert_close(got, want, atol=2e-4, rtol=0)


def if_there(kind: str) -> list[Case]:
    """Return the golden cases of a kind that the set shipped with the repository leaves out."""
    try:
        return cases(kind)
    except LookupError:
        return []


@pytest.mark.parametrize("make", [torch.from_numpy, lambda image: image])
def test_the_reference_adds_the_networks_input_to_a_sample(make):
    """As its depth script does, with a tensor, and as its data loaders do."""
    from ldm.data.util import AddMiDaS
    from ldm.modules.midas.api import MiDaSInference, load_midas_transform

    image = np.random.default_rng(0).random((480, 641, 3), dtype=np.float32) * 2 - 1
    batch = {"jpg": make(image), "txt": ["a room"]}
    assert AddMiDaS(model_type="dpt_hybrid")(batch) is batch
    assert batch.keys() == {"jpg", "txt", "midas_in"} and isinstance(batch["midas_in"], np.ndarray)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    midas_in = torch.from_numpy(batch["midas_in"][None, ...])
    torch.testing.assert_close(midas_in, preprocess(pixels), atol=1e-6, rtol=0)
    alone = load_midas_transform("dpt_hybrid")({"image": (image + 1) / 2, "other": 1})
    assert np.array_equal(alone["image"], batch["midas_in"]) and alone["other"] == 1
    model = MiDaSInference(sizes=NARROW)
    assert torch.equal(model(midas_in), model.depth(pixels))
    with pytest.raises(ConfigError, match="midas_v21"):
        load_midas_transform("midas_v21")


@pytest.mark.parametrize("case", if_there("midas_transform"), ids=lambda case: case.name)
def test_preprocessing_of_golden_pictures(case: Case):
    image = case.inputs.get("image_uint8")
    if image is None:                       # given by a formula
        height, width = case.config["image_hw"]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        board = 255 * ((x // 16 + y // 16) % 2)
        image = torch.stack((x * 255 // (width - 1), y * 255 // (height - 1), board), dim=-1)
    pixels = preprocess((image.float() / 127.5 - 1).permute(2, 0, 1)[None])[0]
    statistics = torch.stack((pixels.mean(), pixels.std(correction=0)))
    shape = torch.tensor(pixels.shape)
    case.check_all({"shape": shape, "every_8th": pixels[:, ::8, ::8], "mean_std": statistics})


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (1, 1), (61, 67)])
def test_depth_of_any_picture(size: tuple[int, int]):
    depth = MiDaSInference(sizes=NARROW).depth(torch.rand(1, 3, *size) * 2 - 1)
    assert depth.shape == (1, 1, *network_size(*size))
    assert depth.isfinite().all() and (depth >= 0).all()


def test_half_precision_weights_give_back_the_dtype_of_the_picture():
    ours, _ = both()
    x = torch.rand(1, 3, 64, 64)
    want = ours(x)
    got = ours.bfloat16()(x)
    assert got.dtype == torch.float32
    assert (got - want).abs().mean() < 0.05 * want.abs().mean()


def test_same_padding_puts_the_odd_one_last():
    x = torch.ones(1, 1, 4, 5)
    padded = same_padding(x, kernel=3, stride=2)                # (4 -> 2: one row; 5 -> 3: two columns)
    assert padded.shape == (1, 1, 5, 7)
    assert padded[0, 0, 4].sum() == 0 and padded[0, 0, :, 0].sum() == 0 and padded[0, 0, 0].sum() == 5


@pytest.mark.parametrize("shape", [(1, 3, 100, 64), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_other_shapes_are_refused(shape: tuple[int, ...]):
    with pytest.raises(InputError, match="multiples of 32"):
        MiDaSInference(sizes=NARROW)(torch.zeros(shape))


def test_other_networks_are_refused():
    with pytest.raises(ConfigError, match="midas_v21"):
        MiDaSInference(model_type="midas_v21")
