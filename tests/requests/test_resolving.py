"""A resolved request says all that decides an image."""

from dataclasses import replace

import pytest

import ldm
from ldm.errors import ConfigError, InputError
from ldm.jobs.opening import demo_files, facts_of
from ldm.requests import NAMES, Img2Img, Inpaint, Outpaint, Sample, Txt2Img, Unclip, fields_of, find
from ldm.requests.resolving import ModelFacts, resolved
from ldm.samplers import SAMPLERS

SD = ModelFacts(native_size=512, training_size=640, latent_channels=4, latent_factor=8)


@pytest.mark.parametrize("task", NAMES)
def test_no_option_is_left_that_means_the_usual(task):
    cls = find(task)
    request = resolved(cls(), SD)
    for name, each in fields_of(cls).items():
        if each.option.usual is not None:
            assert getattr(request, name) is not None, name
    assert (request.sampler, request.schedule) == ("ddim", "reference")
    assert resolved(request, SD) == request, "once is enough"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_has_its_schedule_and_eta_in_words_and_numbers(sampler):
    request = resolved(Inpaint(sampler=sampler), SD)
    row = SAMPLERS[sampler].cls
    assert request.schedule == (row.count_exact_spacing or row.default_spacing or "reference")
    assert request.eta == (1.0 if sampler == "ddim" else row.default_eta or 0.0)


def test_what_the_model_recommends_stands_before_the_usual_and_after_what_is_asked():
    facts = replace(SD, defaults={"txt2img": {"scale": 4, "steps": 9}, "sample": {"scale": 2}})
    assert [resolved(Txt2Img(), facts).scale, resolved(Txt2Img(), facts).steps] == [4, 9]
    assert [resolved(Txt2Img(scale=7.5), facts).scale, resolved(Sample(), facts).scale] == [7.5, 2]
    assert resolved(Img2Img(), facts).scale == 9


def test_a_wrong_recommendation_is_refused_by_name():
    with pytest.raises(InputError, match="steps: got 'many'"):
        resolved(Txt2Img(), replace(SD, defaults={"txt2img": {"steps": "many"}}))


def test_the_size_is_asked_for_or_native_and_counted_in_the_factor_that_is_given():
    sizes = [(resolved(request, SD).height, resolved(request, SD).width) for request in (
        Txt2Img(), Txt2Img(height=300), Unclip(width=77), Txt2Img(height=100, width=203, latent_factor=4),
    )]  # fmt: skip
    assert sizes == [(512, 512), (300, 512), (512, 77), (200, 400)]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Txt2Img(latent_channels=3), "--C 3: this model's latents have 4 channels; leave --C out"),
        (Img2Img(latent_factor=4), "--f 4: this model has 8 pixels per latent; leave --f out"),
        (Txt2Img(latent_factor=600), "--f 600 is larger than the image"),
        (Txt2Img(sampler="plms", eta=0.5), "eta 0.5: the plms sampler takes no eta"),
        (Txt2Img(sampler="eulr"), "unknown sampler 'eulr'"),
        (Txt2Img(sampler=""), "unknown sampler ''"),
    ],
)
def test_contradictions_are_refused(request_, says):
    with pytest.raises(InputError, match=says):
        resolved(request_, SD)


def test_the_second_pass_the_window_the_fit_and_the_mix():
    assert resolved(Txt2Img(), SD).hires_steps is None
    request = resolved(Txt2Img(hires=1.5, steps=7), SD)
    assert (request.hires_strength, request.hires_steps) == (0.4, 7)
    request = resolved(Txt2Img(hires=1.5, hires_mode="latent", hires_steps=3), SD)
    assert (request.hires_strength, request.hires_steps) == (0.65, 3)
    assert [resolved(Outpaint(window=w), SD).window for w in (None, 99)] == [640, 99]
    fits = [resolved(Img2Img(**size), SD).fit for size in ({}, {"height": 64}, {"width": 64, "fit": "pad"})]
    assert fits == ["exact", "crop", "pad"]
    both = Unclip(init_img=["a", "b"])
    mixes = [Unclip(init_img="a"), both, replace(both, mix_noise_level="off")]
    assert [resolved(mix, SD).mix_noise_level for mix in mixes] == [None, 50, "off"]


def test_the_library_takes_what_a_models_yaml_recommends():
    model = ldm.load_model(*demo_files(), device="cpu")
    request = Txt2Img(prompts=["a"], steps=1)
    assert resolved(request, facts_of(model)).scale == 4
    assert resolved(replace(request, scale=7.0), facts_of(model)).scale == 7


@pytest.mark.parametrize(
    ("defaults", "says"),
    [
        ({"txt2im": {"scale": 4}}, "no task 'txt2im'; did you mean 'txt2img'"),
        ({"txt2img": {"scal": 4}}, "no model can recommend 'scal' for Txt2Img; did you mean 'scale'"),
        ({"txt2img": {"rng": "per-image"}}, "no model can recommend 'rng'"),
    ],
)
def test_mistakes_in_recommended_options_are_errors(defaults, says):
    with pytest.raises(ConfigError, match=says):
        resolved(Txt2Img(prompts=["a"]), ModelFacts(64, 64, 4, 8, defaults=defaults))
