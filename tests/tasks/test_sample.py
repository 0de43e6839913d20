"""Pictures without a prompt: of a model without text encoder, and by the empty prompt."""

import pytest
import torch
from tiny_models import tiny_config
from tiny_models import tiny_model as built

from ldm.diffusion.prediction import denoiser
from ldm.errors import InputError
from ldm.samplers import SAMPLERS, make_sampler, sample_loop
from ldm.tasks.probe import probe_prediction
from ldm.tasks.sample import sample
from ldm.tasks.sampling import Settings
from ldm.tasks.txt2img import txt2img


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return built(tiny_config("unconditional", tmp_path_factory.mktemp("unconditional")))


def make(model, count=2, settings=None, **options):
    settings = settings or Settings("ddim", 4, guidance_scale=1.0)
    return list(sample(model, count, seed=5, settings=settings, batch_size=2, **options))


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


@pytest.mark.few(2)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_at_any_size(unconditional, sampler):
    settings = Settings(sampler, 4, guidance_scale=1.0, rng="per-image", exact=True)
    batches = make(unconditional, 3, settings, height=67, width=41, n_iter=2)
    assert [len(batch.images) for batch in batches] == [2, 1, 2, 1]
    for batch in batches:
        assert batch.images.shape[-2:] == (67, 41) and torch.isfinite(batch.images).all()
    alone = list(sample(unconditional, 1, seed=7, height=67, width=41, settings=settings))
    assert torch.equal(batches[1].images, alone[0].images)


def test_a_text_model_is_asked_with_the_empty_prompt(tiny_model):
    settings = Settings("euler_a", 4, guidance_scale=1.0)
    ours = make(tiny_model, settings=settings, height=16, width=24)[0]
    (theirs,) = txt2img(tiny_model, ["", ""], seed=5, height=16, width=24, batch_size=2, settings=settings)
    assert torch.equal(ours.images, theirs.images)
    away = Settings("euler_a", 4, guidance_scale=3.0, negative_prompt="a cat")
    assert not torch.equal(make(tiny_model, settings=away, height=16, width=24)[0].images, ours.images)


def test_by_default_the_size_is_the_models_and_guidance_is_off(tiny_model):
    side = tiny_model.image_size * tiny_model.downsampling_factor
    track = lambda steps, total: list(steps)[:0] or iter(())  # noqa: E731
    (batch,) = sample(tiny_model, 1, seed=5, track=track)
    assert batch.images.shape[-2:] == (side, side)


@pytest.mark.parametrize(("scale", "negative"), [(2.0, ""), (1.0, "a cat"), (3.0, "a cat")])
def test_a_model_without_text_cannot_be_guided(unconditional, scale, negative):
    settings = Settings("ddim", 4, guidance_scale=scale, negative_prompt=negative)
    with pytest.raises(InputError, match="no text encoder.*expected scale 1"):
        sample(unconditional, 1, seed=5, settings=settings)


def test_guidance_from_nothing_to_nothing_is_refused(tiny_model):
    with pytest.raises(InputError, match="guidance scale 2 changes nothing"):
        sample(tiny_model, 1, seed=5, settings=Settings("ddim", 4, guidance_scale=2.0))


def test_models_of_other_tasks_are_refused(tmp_path, unconditional):
    with pytest.raises(InputError, match="for another task .*'hybrid'"):
        make(built(tiny_config("inpaint", tmp_path)))
    with pytest.raises(InputError, match="takes no prompt"):
        txt2img(unconditional, ["a"], seed=5, height=64, width=64)


def test_the_probe_runs_without_a_text_encoder(unconditional):
    assert probe_prediction(unconditional).prediction is None, "random weights predict nothing"
