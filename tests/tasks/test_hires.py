"""Two passes: the sizes, the steps, the draws; the first pass is txt2img's, the second img2img's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from requesting import make_images

from ldm.errors import InputError
from ldm.requests import Txt2Img
from ldm.samplers import SAMPLERS
from ldm.tasks.hires import enlarged_size, first_pass


def make(model, hires, settings=None, prompts=("a",), height=16, width=16, **options):
    """Make the images of both passes; `hires` has the options of the second."""
    settings = settings or dict(sampler="ddim", steps=4)
    run = make_images(
        model,
        Txt2Img,
        prompts=list(prompts),
        seed=5,
        height=height,
        width=width,
        **settings,
        **hires,
        **options,
    )
    return list(run)


@pytest.mark.parametrize("mode", ["pixel", "latent"])
@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((16, 32), 2, (32, 64)), ((20, 17), 1.5, (30, 26)), ((16, 16), 1.1, (18, 18))],
)
def test_the_final_size_is_the_first_times_the_scale(tiny_model, mode, size, scale, expected):
    (batch,) = make(tiny_model, dict(hires=scale, hires_mode=mode), height=size[0], width=size[1])
    assert batch.images.shape[-2:] == expected and torch.isfinite(batch.images).all()


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("sampler", "rng"),
    [(sampler, "reference") for sampler in SAMPLERS] + [("euler_a", "per-image"), ("ddpm", "gpu-philox")],
)
def test_every_sampler_and_rng_and_again_the_same(tiny_model, sampler, rng):
    settings = dict(sampler=sampler, steps=4, rng=rng)
    first, second = (make(tiny_model, dict(hires=2), settings)[0].images for _ in range(2))
    assert first.shape == (1, 3, 32, 32) and torch.equal(first, second)


@pytest.mark.parametrize("mode", ["pixel", "latent"])
def test_the_first_pass_is_txt2img_and_the_second_takes_its_share_of_steps(tiny_model, mode):
    seen = []

    def track(steps, total):
        for step in steps:
            seen.append((total, step))
            yield step

    make(
        tiny_model,
        dict(hires=2, hires_mode=mode, hires_strength=0.7, hires_steps=10),
        dict(sampler="dpm", steps=4),
        track=track,
    )
    assert [total for total, _ in seen] == [4] * 4 + [7] * 7
    settings = dict(sampler="dpm", steps=4)
    (alone,) = make_images(tiny_model, Txt2Img, prompts=["a"], seed=5, height=16, width=16, **settings)
    assert torch.equal(seen[3][1].x_t, alone.latents)
    assert seen[-1][1].x_t.shape[-2:] == (4, 4)


@pytest.mark.slow
def test_little_strength_keeps_what_was_composed(tiny_model):
    """The less is repainted, the closer to the enlarged first pass."""
    settings = dict(sampler="ddim", steps=20)
    (small,) = make_images(tiny_model, Txt2Img, prompts=["a"], seed=5, height=16, width=16, **settings)
    large = torch.nn.functional.interpolate(small.latents, (4, 4), mode="bilinear")
    far = [
        float(
            (
                make(tiny_model, dict(hires=2, hires_mode="latent", hires_strength=s), settings)[0].latents
                - large
            ).norm()
        )
        for s in (0.1, 0.5, 1.0)
    ]
    assert far[0] < far[1] < far[2] and far[0] < 0.5 * far[2]


def test_with_seeds_of_their_own_pictures_do_not_depend_on_the_batch(tiny_model):
    settings = dict(sampler="euler_a", steps=4, rng="per-image", exact=True)
    size = {"height": 32, "width": 32}
    together = make(tiny_model, dict(hires=1.5), settings, prompts="ab", n_samples=2, **size)[0]
    alone = make(tiny_model, dict(hires=1.5), settings, prompts="ab", n_samples=1, **size)
    assert torch.equal(together.images, torch.cat([batch.images for batch in alone]))
    assert together.seeds == (5, 6)


def test_given_noise_is_the_first_passes(tiny_model):
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(5))
    given = make(tiny_model, dict(hires=2), latents=noise)[0]
    assert torch.equal(given.images, make(tiny_model, dict(hires=2))[0].images)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"hires": 1.0}, "hires: got 1.0"),
        ({"hires": 4.5}, "hires: got 4.5"),
        ({"hires": float("nan")}, "hires: got nan"),
        ({"hires": 2, "hires_mode": "ai"}, "hires_mode: got 'ai'"),
    ],
)
def test_wrong_options_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        Txt2Img(**arguments)


def test_a_second_pass_without_a_step_is_refused(tiny_model):
    with pytest.raises(InputError, match="leaves none of 4 steps"):
        make(tiny_model, dict(hires=2, hires_strength=0.1))


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from([128, 512, 768]), st.sampled_from([8, 64]))
def test_what_is_advised_gives_the_size_that_was_asked_for(height, width, side, multiple):
    """The factor is read from text, as a user would copy it."""
    passes = first_pass(height, width, side, multiple)
    area = height * width / side**2
    if area > 1.6 and min(height, width) >= 16:
        assert passes is not None
    if passes is not None:
        h, w, factor = passes[0], passes[1], float(f"{passes[2]:g}")
        assert 1 < factor <= 4 and enlarged_size(h, w, factor) == (height, width)
        if 1.6 < area <= 4 and min(height, width) >= 256:
            assert 0.4 < h * w / side**2 < 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1024, 1024), (512, 512, 2.0)), ((768, 1024), (384, 512, 2.0)), ((1024, 512), (768, 384, 1.333))],
)
def test_round_numbers_are_preferred(size, expected):
    assert first_pass(*size, 512, 64) == expected
