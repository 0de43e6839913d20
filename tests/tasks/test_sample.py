"""Pictures without a prompt: of a model without text encoder, and by the empty prompt."""

import pytest
import torch
from requesting import make_images
from tiny_models import tiny_config
from tiny_models import tiny_model as built

import ldm
from ldm.diffusion.prediction import denoiser
from ldm.errors import InputError
from ldm.requests import Sample, Txt2Img
from ldm.samplers import SAMPLERS, make_sampler, sample_loop
from ldm.tasks.probe import probe_prediction


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return built(tiny_config("unconditional", tmp_path_factory.mktemp("unconditional")))


def make(model, count=2, settings=None, **options):
    settings = settings or dict(sampler="ddim", steps=4, scale=1.0)
    return list(make_images(model, Sample, prompts=[""] * count, seed=5, **settings, n_samples=2, **options))


def test_it_is_the_sampler_on_the_network_alone(unconditional):
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    sampler = make_sampler("ddim", unconditional.schedule, 4)
    denoise = denoiser(unconditional.apply_model, unconditional.schedule, unconditional.parameterization)
    with torch.no_grad():
        *_, last = sample_loop(sampler, denoise, x_t, None)
        expected = unconditional.decode_first_stage(last.x_t)
    (batch,) = make(unconditional)
    assert torch.equal(batch.latents, last.x_t) and torch.allclose(batch.images, expected, atol=1e-6)
    assert batch.images.shape == (2, 3, 64, 64) and batch.prompts == ["", ""]


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_at_any_size(unconditional, sampler):
    settings = dict(sampler=sampler, steps=4, scale=1.0, rng="per-image", exact=True)
    batches = make(unconditional, 3, settings, height=67, width=41, n_iter=2)
    assert [len(batch.images) for batch in batches] == [2, 1, 2, 1]
    for batch in batches:
        assert batch.images.shape[-2:] == (67, 41) and torch.isfinite(batch.images).all()
    alone = list(
        make_images(unconditional, Sample, prompts=[""] * 1, seed=7, height=67, width=41, **settings)
    )
    assert torch.equal(batches[1].images, alone[0].images)


def test_a_text_model_is_asked_with_the_empty_prompt(tiny_model):
    settings = dict(sampler="euler_a", steps=4, scale=1.0)
    ours = make(tiny_model, settings=settings, height=16, width=24)[0]
    (theirs,) = make_images(
        tiny_model, Txt2Img, prompts=["", ""], seed=5, height=16, width=24, n_samples=2, **settings
    )
    assert torch.equal(ours.images, theirs.images)
    away = dict(sampler="euler_a", steps=4, scale=3.0, negative_prompt="a cat")
    assert not torch.equal(make(tiny_model, settings=away, height=16, width=24)[0].images, ours.images)


def test_by_default_the_size_is_the_models_and_guidance_is_off(tiny_model):
    side = tiny_model.image_size * tiny_model.downsampling_factor
    (batch,) = ldm.generate(tiny_model, Sample(prompts=[""], seed=5, steps=2))
    assert batch.images.shape[-2:] == (side, side)
    (unguided,) = ldm.generate(tiny_model, Sample(prompts=[""], seed=5, steps=2, scale=1.0))
    assert torch.equal(batch.images, unguided.images)


@pytest.mark.parametrize(("scale", "negative"), [(2.0, ""), (1.0, "a cat"), (3.0, "a cat")])
def test_a_model_without_text_cannot_be_guided(unconditional, scale, negative):
    settings = dict(sampler="ddim", steps=4, scale=scale, negative_prompt=negative)
    with pytest.raises(InputError, match="no text encoder.*expected scale 1"):
        make(unconditional, 1, settings)


def test_guidance_from_nothing_to_nothing_is_refused(tiny_model):
    with pytest.raises(InputError, match="guidance scale 2 changes nothing"):
        make(tiny_model, 1, dict(sampler="ddim", steps=4, scale=2.0))


def test_models_of_other_tasks_are_refused(tmp_path, unconditional):
    with pytest.raises(InputError, match="for another task .*'hybrid'"):
        make(built(tiny_config("inpaint", tmp_path)))
    with pytest.raises(InputError, match="takes no prompt"):
        make_images(unconditional, Txt2Img, prompts=["a"], seed=5, height=64, width=64)


def test_the_probe_runs_without_a_text_encoder(unconditional):
    assert probe_prediction(unconditional).prediction is None, "random weights predict nothing"
