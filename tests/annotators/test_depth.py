"""Depth and normals: the formulas of ControlNet's pages on estimated and on given depth."""

from pathlib import Path

import numpy as np
import pytest
import torch
from annotator_cases import aux, photograph
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.annotators import find
from ldm.errors import CheckpointError, InputError, WrongModelError
from ldm.models.midas import DPTHybrid, MiDaSInference

SIZES = {
    "stem": 8, "channels": (16, 32, 32), "depths": (1, 1, 1), "groups": 4, "width": 16, "depth": 3,
    "num_heads": 2, "taps": (1, 2), "classes": 2, "features": 8, "head_features": 4,
}  # fmt: skip


class Theirs(nn.Module):
    """Gives a network as controlnet-aux calls it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, 0]


@pytest.fixture(scope="module")
def tiny() -> MiDaSInference:
    torch.manual_seed(0)
    network = MiDaSInference(sizes=SIZES)
    network.model.scratch.output_conv[4].bias.data += 1      # so that not all of it is cut off at 0
    return network


@pytest.mark.parametrize("background", [0.1, 0.4])
def test_depth_and_normals_equal_controlnet_aux(tiny: MiDaSInference, background: float):
    image = photograph()[:300, :400]
    theirs = aux("midas", without="midas.api").MidasDetector(Theirs(tiny))
    expected, normals = theirs(
        image, bg_th=background, depth_and_normal=True, detect_resolution=128, image_resolution=128
    )
    depth, normal = find("depth")(resolution=128), find("normal")(resolution=128, background=background)
    for each in (depth, normal):
        each.__dict__["network"] = tiny
    assert expected.std() > 10 and normals.std() > 10
    for ours, reference in ((depth.detect(image), expected), (normal.detect(image), normals)):
        difference = np.abs(ours.astype(int) - reference)       # they truncate after rounding to float32
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    assert depth(image).shape == image.shape


def test_the_defaults_are_those_of_the_pages():
    assert find("depth")().resolution == find("normal")().resolution == 384
    assert find("normal")().background == 0.4


def test_a_given_map_is_stretched(tmp_path: Path):
    np.save(tmp_path / "plane.npy", np.tile(np.linspace(5, 7, 128, dtype=np.float32), (96, 1)))
    found = find("depth")(depth=tmp_path / "plane.npy")(np.zeros((96, 128, 3), np.uint8))
    assert found.shape == (96, 128, 3) and found[0, 0, 0] == 0 and found[0, -1, 0] == 255
    assert (np.diff(found[40, :, 0].astype(int)) >= 0).all()


def test_a_given_map_may_be_an_array():
    plane = np.tile(np.linspace(5, 7, 128, dtype=np.float32), (96, 1))
    assert find("depth")(depth=plane)(np.zeros((96, 128, 3), np.uint8))[:, -1].min() == 255


def test_the_normal_of_a_plane(tmp_path: Path):
    """d = 2 pi x / 8: Sobel's sums are 8 times the slope, so that n = (1, 0, 1) / sqrt 2."""
    np.save(tmp_path / "plane.npy", np.tile(np.arange(64, dtype=np.float32) * np.pi / 4, (64, 1)))
    normal = find("normal")(depth=tmp_path / "plane.npy", resolution=64, background=0.5)
    found = normal(np.zeros((64, 64, 3), np.uint8))
    assert found[30, 50].tolist() == [217, 127, 217]        # z, y, x
    assert found[30, 10].tolist() == [255, 127, 127]        # background


def test_flat_depth_is_black_and_faces_the_viewer(tmp_path: Path):
    np.save(tmp_path / "flat.npy", np.ones((64, 64)))
    image = np.zeros((64, 64, 3), np.uint8)
    assert not find("depth")(depth=tmp_path / "flat.npy")(image).any()
    assert (find("normal")(depth=tmp_path / "flat.npy")(image) == [255, 127, 127]).all()


def test_a_map_of_another_shape_is_refused(tmp_path: Path):
    np.save(tmp_path / "wide.npy", np.eye(64, 128))
    with pytest.raises(InputError, match="the given depth map is 128x64, another aspect ratio"):
        find("depth")(depth=tmp_path / "wide.npy")(np.zeros((64, 64, 3), np.uint8))


def test_weights_are_asked_for():
    with pytest.raises(InputError, match="MiDaS needs its weights: give --annotator-weights dpt_hybrid"):
        find("depth")()(photograph())


def test_midas_own_file_is_read(tmp_path: Path, tiny: MiDaSInference, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldm.models.midas.DPTHybrid", lambda: DPTHybrid(**SIZES))
    torch.save(tiny.model.state_dict(), tmp_path / "dpt_hybrid-midas-501f0c75.pt")
    save_file({f"depth_model.model.{name}": x for name, x in tiny.model.state_dict().items()},
              tmp_path / "512-depth-ema.safetensors")
    expected = tiny.model.state_dict()
    for given in (tmp_path, tmp_path / "512-depth-ema.safetensors"):
        found = find("depth")(annotator_weights=given, device="cpu").network.model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [("block1.projection.weight", "HED .ControlNetHED.pth."), ("lora_te_x.lora_up.weight", "LoRA"),
     ("of.nobody", "no known|unknown")],
)  # fmt: skip
def test_weights_of_another_network_are_named(tmp_path: Path, name: str, words: str):
    torch.save({name: torch.ones(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(WrongModelError, match=f"other.pth is .*({words}).*; expected MiDaS"):
        find("depth")(annotator_weights=tmp_path / "other.pth", device="cpu")(photograph()[:64, :64])


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="MiDaS needs dpt_hybrid-midas-501f0c75.pt in this folder"):
        find("depth")(annotator_weights=tmp_path)(photograph())
