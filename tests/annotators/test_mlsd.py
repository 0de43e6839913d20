"""M-LSD: its network, and the segments in its maps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from annotator_cases import aux, photograph, randomised
from torch import Tensor, nn

from ldm.annotators import find
from ldm.annotators.mlsd import segments
from ldm.errors import WrongModelError
from ldm.models.mlsd import MLSD


@pytest.fixture(scope="module")
def network() -> MLSD:
    found = randomised(MLSD(), 0)
    for module in found.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.fill_(1)
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return found


def test_the_map_equals_controlnet_aux(tmp_path: Path, network: MLSD):
    detector = aux("mlsd").MLSDdetector
    reference = aux("mlsd.models.mbv2_mlsd_large").MobileV2_MLSD_Large()
    reference.load_state_dict(network.state_dict())
    theirs = detector(reference.eval())
    torch.save(network.state_dict(), tmp_path / "mlsd_large_512_fp32.pth")
    image = photograph()[:300, :420]
    expected = theirs(image, thr_v=0.3, thr_d=2.0, detect_resolution=128, image_resolution=128)
    annotator = find("mlsd")(annotator_weights=tmp_path, resolution=128, score=0.3, length=2.0, device="cpu")
    found = annotator.detect(image)
    expected = np.asarray(expected)
    assert 0 < (expected > 0).mean() < 0.9
    assert (found != expected).mean() < 1e-3


def told(*lines: tuple[float, float, float, float, float]) -> Tensor:
    """Return maps (9, 32, 48) with segments: logit, then the ends in pixels of the image."""
    maps = torch.full((9, 32, 48), -9.0)
    for logit, *ends in lines:
        x, y = int(ends[0] + ends[2]) // 4, int(ends[1] + ends[3]) // 4
        maps[0, y, x] = logit
        maps[1:5, y, x] = torch.tensor(ends) / 2 - torch.tensor([x, y, x, y])
    return maps


def test_segments_are_where_the_maps_say():
    maps = told((3.0, 10, 12, 70, 12), (1.0, 40, 20, 40, 60), (-2.5, 8, 40, 20, 44), (2.0, 80, 50, 81, 50))
    found = segments(maps, score=0.1, length=1.0)
    np.testing.assert_allclose(found, [[10, 12, 70, 12], [40, 20, 40, 60]], atol=1e-4)
    assert len(segments(maps, score=0.05, length=0.1)) == 4
    assert segments(told(), score=0.1, length=0.1).shape == (0, 4)


def test_lines_are_drawn_in_white():
    annotator = find("hough")(resolution=None)
    maps = told((3.0, 10, 12, 70, 12))[None]
    annotator.__dict__["run"] = lambda image: (maps,)
    found = annotator(np.zeros((64, 128, 3), np.uint8))[..., 0]
    assert np.flatnonzero(found.any(axis=1)).tolist() == [12] and (found[12] > 0).sum() == 61


def test_weights_of_another_network_are_named(tmp_path: Path):
    torch.save({"backbone.features.0.0.weight": torch.ones(32, 4, 3, 3)}, tmp_path / "tiny.pth")
    with pytest.raises(WrongModelError, match="tiny.pth is M-LSD, but not the large one; expected M-LSD"):
        find("mlsd")(annotator_weights=tmp_path / "tiny.pth", device="cpu")(photograph())
