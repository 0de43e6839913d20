"""Guidance as the tasks run it: what the network is asked, and pictures from every sampler."""

import logging

import numpy as np
import pytest
import torch
from requesting import make_images

from ldm.errors import InputError
from ldm.requests import Img2Img, Txt2Img
from ldm.samplers import SAMPLERS

ALL = {"guidance_rescale": 0.7, "guidance_interval": (0.2, 0.8), "dynamic_threshold": 0.9}


@pytest.fixture
def calls(tiny_model, monkeypatch) -> list[tuple[int, float]]:
    """Return what the network is asked: (batch, time as a part of 999)."""
    seen = []
    original = tiny_model.apply_model

    def apply_model(x_t, t, cond):
        seen.append((len(x_t), float(t[0]) / 999))
        return original(x_t, t, cond)

    monkeypatch.setattr(tiny_model, "apply_model", apply_model)
    return seen


def latents(model, settings: dict, prompts=("a", "b"), **options) -> torch.Tensor:
    (batch,) = make_images(
        model, Txt2Img, prompts=list(prompts), seed=5, height=16, width=16, n_samples=2, **settings, **options
    )
    return batch.latents


@pytest.mark.few(5)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_a_picture_with_all_of_it(tiny_model, calls, sampler):
    spaced = dict(sampler=sampler, steps=4, scale=15.0, schedule="trailing", **ALL)
    assert torch.isfinite(latents(tiny_model, spaced)).all()
    assert len(calls) == 4
    assert all(size == (4 if 0.2 <= t <= 0.8 else 2) for size, t in calls)
    assert {size for size, _ in calls} == {2, 4}


def test_pictures_from_pictures_take_all_of_it(tiny_model, calls):
    image = np.random.default_rng(0).integers(0, 256, (32, 16, 3), np.uint8)
    settings = dict(sampler="ddim", steps=4, **ALL)
    (batch,) = make_images(
        tiny_model, Img2Img, init_img=image, prompts=["a"], seed=5, strength=0.75, **settings
    )
    assert torch.isfinite(batch.images).all()
    assert [size for size, _ in calls] == [2, 2, 1]


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm", "heun"])
def test_what_is_off_changes_no_bit(tiny_model, sampler):
    plain = latents(tiny_model, dict(sampler=sampler, steps=3))
    off = dict(sampler=sampler, steps=3, guidance_rescale=0.0, guidance_interval=(0.0, 1.0))
    assert torch.equal(latents(tiny_model, off), plain)
    for name, value in ALL.items():
        changed = latents(tiny_model, dict(sampler=sampler, steps=3, scale=40.0, **{name: value}))
        assert not torch.equal(changed, latents(tiny_model, dict(sampler=sampler, steps=3, scale=40.0))), name


def test_an_interval_without_steps_is_no_guidance(tiny_model, calls, caplog):
    with caplog.at_level(logging.INFO, logger="ldm"):
        nowhere = latents(tiny_model, dict(sampler="ddim", steps=2, guidance_interval=(0.99, 1.0)))
    assert [size for size, _ in calls] == [2, 2]
    assert torch.equal(nowhere, latents(tiny_model, dict(sampler="ddim", steps=2, scale=1.0)))
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "guidance in 0 of 2 steps" in warning.getMessage()


def test_the_guided_steps_are_counted(tiny_model, calls, caplog):
    with caplog.at_level(logging.INFO, logger="ldm"):
        latents(tiny_model, dict(sampler="ddim", steps=4, guidance_interval=(0.2, 0.6)))
    assert "guidance in 2 of 4 steps" in caplog.text
    assert [size for size, _ in calls] == [2, 4, 4, 2]


@pytest.mark.parametrize("name", ALL)
def test_impossible_settings_are_refused_before_anything_is_drawn(tiny_model, name):
    wrong = {"guidance_rescale": 1.5, "guidance_interval": (0.8, 0.2), "dynamic_threshold": 99.5}
    with pytest.raises(InputError, match="expected"):
        make_images(tiny_model, Txt2Img, prompts=["a"], seed=1, height=16, width=16, **{name: wrong[name]})
