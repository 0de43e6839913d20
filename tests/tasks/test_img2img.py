"""What --strength does, for every sampler, from nothing to a fresh picture."""

import itertools
import logging

import numpy as np
import pytest
import torch
from requesting import make_images, run_of

from ldm.imaging.colour import from_uint8
from ldm.imaging.padding import Frame
from ldm.requests import Img2Img
from ldm.samplers import SAMPLERS, make_sampler

LEAST = 0.045  # sigma at time 1; it is 0.029 at time 0
IMAGE = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)


def made(model, sampler: str, strength: float, steps: int = 4, image=IMAGE, **settings):
    """Return a batch of one and the steps that were taken for it."""
    taken = []

    def track(steps, total):
        for step in steps:
            taken.append(step.i)
            yield step

    settings = dict(sampler=sampler, steps=steps, scale=1.0, **settings)
    start = {"latents" if isinstance(image, torch.Tensor) else "init_img": image}
    (batch,) = make_images(
        model, Img2Img, **start, prompts=["a"], seed=1, strength=strength, **settings, track=track
    )
    return batch, taken


@pytest.fixture
def gaussian(tiny_model, monkeypatch):
    """The tiny model where its UNet is the best for latents that are standard normal: eps = sigma x_t.

    With it the way back is known: of x_0 there is left what the noise has left.
    """
    best = lambda x, t, cond: tiny_model.schedule.alpha_sigma(t, x)[1].view(-1, 1, 1, 1) * x  # noqa: E731
    monkeypatch.setattr(tiny_model, "apply_model", best)
    return tiny_model


def clean_latents(model, seed: int = 1) -> torch.Tensor:
    """Return what the autoencoder makes of IMAGE with the first draw of the seed."""
    framed = Frame.around(13, 17, model.size_multiple).pad(from_uint8(IMAGE))
    posterior = model.encode_first_stage(framed)
    eps = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(seed))
    return model.get_first_stage_encoding(posterior, eps)


@pytest.mark.few(14)
@pytest.mark.parametrize("strength", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_takes_every_strength(tiny_model, sampler, strength):
    batch, taken = made(tiny_model, sampler, strength)
    assert batch.images.shape == (1, 3, 13, 17) and torch.isfinite(batch.images).all()
    steps = run_of(tiny_model, Img2Img, init_img=IMAGE, sampler=sampler, steps=4).sampler
    assert len(taken) == int(strength * steps.num_steps)
    assert taken == list(range(len(steps)))[len(steps) - len(taken) :], "the last ones"


@pytest.mark.few(7)
@pytest.mark.parametrize("spacing", [None, "trailing"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_zero_is_the_round_trip_with_the_least_noise(tiny_model, sampler, spacing):
    """No step is taken, and what noise stays is that of the training's first two times."""
    batch, taken = made(tiny_model, sampler, 0.0, schedule=spacing)
    x_0 = clean_latents(tiny_model)
    assert not taken
    assert (batch.latents - x_0).pow(2).mean().sqrt() < 1.2 * LEAST


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_stronger_the_further_from_the_picture(gaussian, sampler):
    x_0 = torch.randn(1, 4, 16, 16)
    distances, kept = [], []
    for strength in (0.0, 0.25, 0.5, 0.75, 1.0):
        latents = made(gaussian, sampler, strength, steps=12, image=x_0)[0].latents
        distances.append(float((latents - x_0).norm() / x_0.norm()))
        kept.append(float((latents * x_0).sum() / (latents.norm() * x_0.norm())))
    assert all(weaker > stronger for weaker, stronger in itertools.pairwise(kept))
    assert all(weaker < stronger for weaker, stronger in itertools.pairwise(distances[:4]))
    assert distances[0] < LEAST and kept[0] > 0.998
    assert distances[-1] > 1.1 and abs(kept[-1]) < 0.05, "independent of it: the root of 2, less what is lost"


@pytest.mark.parametrize("spacing", [None, "trailing"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_strength_one_starts_from_nearly_pure_noise(tiny_model, sampler, spacing):
    sampler = make_sampler(sampler, tiny_model.schedule, 50, spacing=spacing)
    nothing = torch.zeros(1, 4, 2, 2)
    assert sampler.noised(nothing + 1, sampler.num_steps, nothing).max() < 0.09, "of the picture"
    assert sampler.noised(nothing, sampler.num_steps, nothing + 1).min() > 0.995, "of the noise"
    assert sampler.start_index(sampler.num_steps) == len(sampler) - sampler.num_steps


def test_published_steps_begin_with_one_row_more_noise_and_other_spacings_do_not(tiny_model):
    schedule, one = tiny_model.schedule, torch.ones(1, 4, 2, 2)
    for spacing, time in ((None, 801), ("uniform", 801), ("trailing", 799)):
        sampler = make_sampler("ddim", schedule, 50, spacing=spacing)
        expected = schedule.alpha_sigma(torch.tensor([time]), one)[0]
        assert sampler.noised(one, 40, 0 * one).flatten()[0] == expected.float(), spacing
    assert sampler.timesteps[sampler.start_index(40)] == 799


def test_a_strength_that_leaves_no_step_says_so(tiny_model, caplog):
    with caplog.at_level(logging.WARNING, logger="ldm"):
        made(tiny_model, "ddim", 0.0)
        made(tiny_model, "ddim", 0.5)
        assert not caplog.records
        made(tiny_model, "ddim", 0.01)
    assert "strength 0.01 of 4 steps" in caplog.text
