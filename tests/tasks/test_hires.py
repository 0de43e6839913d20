"""Two passes: the sizes, the steps, the draws; the first pass is txt2img's, the second img2img's."""

import pytest
import torch

from ldm.errors import InputError
from ldm.samplers import SAMPLERS
from ldm.tasks.hires import Hires, hires_txt2img
from ldm.tasks.sampling import Settings
from ldm.tasks.txt2img import txt2img


def make(model, hires, settings=None, prompts=("a",), height=16, width=16, **options):
    settings = settings or Settings("ddim", 4)
    run = hires_txt2img(
        model, list(prompts), hires, seed=5, height=height, width=width, settings=settings, **options
    )
    return list(run)


@pytest.mark.parametrize("mode", ["pixel", "latent"])
@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [((16, 32), 2, (32, 64)), ((20, 17), 1.5, (30, 26)), ((16, 16), 1.1, (18, 18))],
)
def test_the_final_size_is_the_first_times_the_scale(tiny_model, mode, size, scale, expected):
    (batch,) = make(tiny_model, Hires(scale, mode), height=size[0], width=size[1])
    assert batch.images.shape[-2:] == expected and torch.isfinite(batch.images).all()


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("sampler", "rng"),
    [(sampler, "reference") for sampler in SAMPLERS] + [("euler_a", "per-image"), ("ddpm", "gpu-philox")],
)
def test_every_sampler_and_rng_and_again_the_same(tiny_model, sampler, rng):
    settings = Settings(sampler, 4, rng=rng)
    first, second = (make(tiny_model, Hires(2), settings)[0].images for _ in range(2))
    assert first.shape == (1, 3, 32, 32) and torch.equal(first, second)


@pytest.mark.parametrize("mode", ["pixel", "latent"])
def test_the_first_pass_is_txt2img_and_the_second_takes_its_share_of_steps(tiny_model, mode):
    seen = []

    def track(steps, total):
        for step in steps:
            seen.append((total, step))
            yield step

    make(tiny_model, Hires(2, mode, strength=0.7, num_steps=10), Settings("dpm", 4), track=track)
    assert [total for total, _ in seen] == [4] * 4 + [7] * 7
    settings = Settings("dpm", 4)
    (alone,) = txt2img(tiny_model, ["a"], seed=5, height=16, width=16, settings=settings)
    assert torch.equal(seen[3][1].x_t, alone.latents)
    assert seen[-1][1].x_t.shape[-2:] == (4, 4)


def test_little_strength_keeps_what_was_composed(tiny_model):
    """The less is repainted, the closer to the enlarged first pass."""
    settings = Settings("ddim", 20)
    (small,) = txt2img(tiny_model, ["a"], seed=5, height=16, width=16, settings=settings)
    large = torch.nn.functional.interpolate(small.latents, (4, 4), mode="bilinear")
    far = [
        float((make(tiny_model, Hires(2, "latent", strength=s), settings)[0].latents - large).norm())
        for s in (0.1, 0.5, 1.0)
    ]
    assert far[0] < far[1] < far[2] and far[0] < 0.5 * far[2]


def test_with_seeds_of_their_own_pictures_do_not_depend_on_the_batch(tiny_model):
    settings = Settings("euler_a", 4, rng="per-image", exact=True)
    size = {"height": 32, "width": 32}
    together = make(tiny_model, Hires(1.5), settings, prompts="ab", batch_size=2, **size)[0]
    alone = make(tiny_model, Hires(1.5), settings, prompts="ab", batch_size=1, **size)
    assert torch.equal(together.images, torch.cat([batch.images for batch in alone]))
    assert together.seeds == (5, 6)


def test_given_noise_is_the_first_passes(tiny_model):
    noise = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(5))
    given = make(tiny_model, Hires(2), latents=noise)[0]
    assert torch.equal(given.images, make(tiny_model, Hires(2))[0].images)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scale": 1.0}, "scale is 1"),
        ({"scale": 4.5}, "scale is 4.5"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 2, "strength": 0.0}, "strength is 0"),
        ({"scale": 2, "mode": "ai"}, "unknown hires mode 'ai'"),
    ],
)
def test_wrong_settings_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        Hires(**arguments)


def test_a_second_pass_without_a_step_is_refused(tiny_model):
    with pytest.raises(InputError, match="leaves none of 4 steps"):
        make(tiny_model, Hires(2, strength=0.1))
