"""The measures of the conditional tasks on pictures whose answer is known."""

import pytest
import torch

from benchmarks.quality import psnr, recall
from benchmarks.task_quality import (
    compared,
    correlation,
    depth_agreement,
    enlarged,
    regions,
    variation_retrieval,
)
from demo.extra_inputs import shrunk


class MeanColour:
    """A judge that sees the mean colour: pictures -> unit vectors (n, 3)."""

    def images(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images.mean(dim=(2, 3)) + 1, dim=1)


def disc(radius: float, x: float = 32, y: float = 32) -> torch.Tensor:
    axis = torch.arange(64.0)
    inside = (axis[None] - x) ** 2 + (axis[:, None] - y) ** 2 < radius**2
    return torch.where(inside, -0.8, 1.0).expand(3, 64, 64)


def test_only_the_painted_region_is_judged():
    images, mask = -torch.ones(2, 3, 8, 8), torch.zeros(8, 8)
    images[:, 0] = 1.0  # red
    mask[2:5, 3:7] = 1
    images[0, :, 2:5, 3:7] = torch.tensor([-1.0, 1.0, -1.0])[:, None, None]  # painted green
    seen = MeanColour().images(regions(images, mask))
    assert recall(seen, torch.tensor([1, 1]), 1).tolist() == [True, False]
    assert regions(images, mask).shape == (2, 3, 3, 4)
    assert regions(images, mask * 0).shape == (2, 3, 8, 8)


def test_the_right_shape_correlates_and_another_does_not():
    images = torch.stack([disc(20), disc(20), disc(8, 10, 10)])
    axis = torch.arange(64.0) - 32
    depth = (1 - (axis[None] ** 2 + axis[:, None] ** 2) / 400).clamp(min=0)
    found = depth_agreement(images, depth.sqrt().expand(3, 1, 64, 64))
    assert found[0] == found[1] > 0.95 and found[2] < 0.2
    assert correlation(torch.zeros(1, 4), torch.randn(1, 4)).item() == 0
    x = torch.randn(1, 9)
    assert correlation(x, -2 * x + 1).item() == pytest.approx(-1, abs=1e-5)


def test_a_perfect_enlargement_beats_interpolation_and_interpolation_does_not_beat_itself():
    originals = torch.stack([disc(20), disc(12, 20, 30)])
    small = shrunk(originals)
    made = {"model": originals, **{name: enlarged(small, 4, name) for name in ("bicubic", "lanczos")}}
    made["faithful_lanczos"] = made["lanczos"]
    found = compared({name: psnr(x, originals) for name, x in made.items()}, higher=True)
    assert found["beats_bicubic"]["value"] == found["beats_lanczos"]["value"] == 1
    assert 15 < found["bicubic"]["value"] < 45 < found["model"]["value"]
    made["model"] = made["bicubic"]
    found = compared({name: psnr(x, originals) for name, x in made.items()}, higher=True)
    assert found["beats_bicubic"]["value"] == 0
    values = {"model": torch.zeros(2), "bicubic": torch.ones(2), "lanczos": torch.tensor([-1.0, 1.0])}
    values["faithful_lanczos"] = values["lanczos"]
    found = compared(values, higher=False)
    assert (found["beats_bicubic"]["value"], found["beats_lanczos"]["value"]) == (1, 0.5)


def test_variations_find_their_sources():
    sources = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4) * 2 - 1
    assert variation_retrieval(MeanColour(), sources * 0.9, sources).all()
    assert variation_retrieval(MeanColour(), sources.roll(1, 0), sources).tolist() == [False] * 3
