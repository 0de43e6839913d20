"""What the tasks promise beyond the published pictures."""

import numpy as np
import pytest
import torch
from requesting import make_images

from ldm.errors import InputError, LdmError
from ldm.requests import Img2Img, Txt2Img

QUICK = dict(sampler="ddim", steps=2)


def pictures(model, prompts, settings=QUICK, **options) -> torch.Tensor:
    batches = make_images(model, Txt2Img, prompts=prompts, seed=5, **settings, **options)
    return torch.cat([batch.images for batch in batches])


@pytest.mark.parametrize("size", [(1, 1), (13, 17), (31, 16), (33, 47)])
def test_any_size_comes_out_exactly(tiny_model, size):
    height, width = size
    images = pictures(tiny_model, ["a"], height=height, width=width)
    assert images.shape == (1, 3, height, width)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    (batch,) = make_images(tiny_model, Img2Img, init_img=image, prompts=["a"], seed=5, **QUICK)
    assert batch.images.shape == (1, 3, height, width) and torch.isfinite(batch.images).all()


def test_a_short_last_batch_works_and_changes_no_other_picture(tiny_model):
    size = {"height": 16, "width": 16, "n_samples": 2}
    three = pictures(tiny_model, ["a", "b", "c"], **size)
    four = pictures(tiny_model, ["a", "b", "c", "d"], **size)
    assert three.shape[0] == 3
    torch.testing.assert_close(three, four[:3], rtol=0, atol=1e-4)


def test_pictures_are_made_as_they_are_asked_for(tiny_model):
    batches = make_images(tiny_model, Txt2Img, prompts=["a"] * 1000, seed=1, height=16, width=16, **QUICK)
    first, second = next(batches), next(batches)
    assert (first.index, second.index) == (0, 1)
    assert torch.is_grad_enabled()


def test_iterations_are_numbered_and_differ(tiny_model):
    batches = list(
        make_images(tiny_model, Txt2Img, prompts=["a", "b"], seed=1, height=16, width=16, n_iter=2, **QUICK)
    )
    assert [(b.iteration, b.index, b.prompts) for b in batches] == [
        (0, 0, ["a"]),
        (0, 1, ["b"]),
        (1, 2, ["a"]),
        (1, 3, ["b"]),
    ]
    assert not torch.equal(batches[0].images, batches[2].images)


def test_fixed_code_repeats_the_start_noise(tiny_model):
    batches = make_images(
        tiny_model, Txt2Img, prompts=["a"], seed=1, height=16, width=16, n_iter=2, **QUICK, fixed_code=True
    )
    first, second = batches
    assert torch.equal(first.images, second.images)


def test_scale_one_makes_one_pass(tiny_model, monkeypatch):
    sizes = []
    original = tiny_model.apply_model
    monkeypatch.setattr(tiny_model, "apply_model", lambda x, t, c: sizes.append(len(x)) or original(x, t, c))
    pictures(tiny_model, ["a"], height=32, width=16, settings=dict(sampler="ddim", steps=2, scale=1.0))
    assert sizes == [1, 1]
    pictures(tiny_model, ["a"], height=32, width=16)
    assert sizes == [1, 1, 2, 2]


def test_a_negative_prompt_takes_the_place_of_the_empty_one(tiny_model):
    size = {"height": 16, "width": 16}
    plain, empty, negative = (
        pictures(tiny_model, ["a"], settings=dict(sampler="ddim", steps=2, negative_prompt=text), **size)
        for text in ("", "", "blurry")
    )
    assert torch.equal(plain, empty) and not torch.equal(plain, negative)


def test_the_steps_can_be_watched(tiny_model):
    seen = []

    def track(steps, total):
        for step in steps:
            seen.append((step.i, total))
            yield step

    pictures(tiny_model, ["a"], height=16, width=16, track=track)
    assert seen == [(0, 2), (1, 2)]


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpm"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [4, 3])
def test_img2img_takes_every_strength(tiny_model, sampler, strength, steps):
    image = np.full((16, 16, 3), 128, np.uint8)
    seen = []

    def track(steps, total):
        for step in steps:
            seen.append(step.i)
            yield step

    settings = dict(sampler=sampler, steps=steps)
    (batch,) = make_images(
        tiny_model, Img2Img, init_img=image, prompts=["a"], seed=1, strength=strength, **settings, track=track
    )
    assert torch.isfinite(batch.images).all()
    assert len(seen) == int(strength * steps)


def test_strength_zero_keeps_the_picture_but_for_the_least_noise(tiny_model):
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    made = [
        next(
            make_images(tiny_model, Img2Img, init_img=image, prompts=[prompt], seed=1, strength=0.0, **QUICK)
        ).latents
        for prompt in ("a", "something else")
    ]
    assert torch.equal(*made)


def test_a_constant_picture_shows_no_seam_in_its_padding(tiny_model):
    """What is encoded is the constant picture of the padded size, so there is nothing that could differ."""
    seen = []
    original = tiny_model.encode_first_stage
    try:
        tiny_model.encode_first_stage = lambda images: seen.append(images) or original(images)
        next(
            make_images(
                tiny_model,
                Img2Img,
                init_img=np.full((13, 19, 3), 200, np.uint8),
                prompts=["a"],
                seed=1,
                **QUICK,
            )
        )
    finally:
        del tiny_model.encode_first_stage
    assert seen[0].shape == (1, 3, 16, 32) and seen[0].min() == seen[0].max()


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_zero_to_one_is_refused(tiny_model, strength):
    with pytest.raises(InputError, match="strength"):
        make_images(
            tiny_model,
            Img2Img,
            init_img=np.zeros((16, 16, 3), np.uint8),
            prompts=["a"],
            seed=1,
            strength=strength,
        )


@pytest.mark.parametrize(
    "settings",
    [
        dict(sampler="plms", steps=4, eta=0.5),
        dict(sampler="dpm", steps=4, eta=0.5),
        dict(sampler="ddim", steps=1001),
        dict(sampler="eulr"),
    ],
    ids=["plms-eta", "dpm-eta", "too-many-steps", "unknown"],
)
def test_settings_are_checked_before_anything_is_drawn(tiny_model, settings):
    with pytest.raises(InputError):
        make_images(tiny_model, Txt2Img, prompts=["a"], seed=1, height=16, width=16, **settings)


def test_a_model_that_needs_more_than_a_prompt_is_refused(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.model, "conditioning_key", "hybrid")
    with pytest.raises(InputError, match="hybrid"):
        make_images(tiny_model, Txt2Img, prompts=["a"], seed=1, height=16, width=16)


def test_a_picture_of_nan_is_an_error_and_not_black(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "decode_first_stage", lambda z: torch.full((1, 3, 16, 16), torch.nan))
    with pytest.raises(LdmError, match="decoding.*NaN.*not saved"):
        pictures(tiny_model, ["a"], height=16, width=16)


def test_bfloat16_gives_about_the_same_picture(tiny_model):
    exact = pictures(tiny_model, ["a"], height=16, width=16, settings=dict(sampler="ddim", steps=4))
    rounded = pictures(
        tiny_model, ["a"], height=16, width=16, settings=dict(sampler="ddim", steps=4, dtype=torch.bfloat16)
    )
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.1
