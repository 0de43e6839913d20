"""Inpainting: what it keeps, whatever the sampler, size and dtype, and what it paints."""

import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from requesting import make_images
from tiny_models import tiny_config, tiny_model

import ldm
from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.jobs.inputs import load_inputs
from ldm.models.latent_inpaint import LatentInpaintDiffusion
from ldm.requests import Inpaint
from ldm.samplers import SAMPLERS
from ldm.tasks.inpaint import Region
from ldm.tasks.run import Run

FAST = dict(sampler="euler_a", steps=2, scale=2.0, rng="per-image")
KINDS = ("inpaint", "sd2")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return tiny models: one that sees the mask, one that does not."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(tiny_config(kind, folder)) for kind in KINDS}


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def rectangle(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), np.float32)
    mask[height // 4 : -(height // 4) or None, width // 3 : -(width // 4) or None] = 1
    return mask


def painted(model, image, mask, prompts=("a cat",), **options) -> list[np.ndarray]:
    options = {"seed": 3, "settings": FAST, "n_samples": len(prompts)} | options
    batches = make_images(model, Inpaint, init_img=image, mask=mask, prompts=list(prompts), **options)
    return [each for batch in batches for each in batch.to_uint8()]


def raw(model, image, mask, **options) -> torch.Tensor:
    options = {"seed": 3, "settings": FAST, "raw": True} | options
    return torch.cat(
        [
            batch.images
            for batch in make_images(model, Inpaint, init_img=image, mask=mask, prompts=["a cat"], **options)
        ]
    )


def check_kept(result: np.ndarray, image: np.ndarray, mask: np.ndarray) -> None:
    assert result.dtype == np.uint8 and result.shape == image.shape
    assert np.array_equal(result[mask == 0], image[mask == 0]), "bytes outside the mask"
    assert not np.array_equal(result[mask == 1], image[mask == 1]), "the mask is painted"


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bytes_outside_the_mask_stay_for_every_sampler(models, kind, sampler):
    image, mask = picture(40, 56), rectangle(40, 56)
    settings = dict(sampler=sampler, steps=3, scale=2.0)
    check_kept(painted(models[kind], image, mask, settings=settings)[0], image, mask)


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("kind", "size", "channels", "dtype", "options"),
    [
        ("inpaint", (31, 67), 4, torch.float32, {}),
        ("sd2", (67, 31), 4, torch.bfloat16, {}),
        ("sd2", (37, 29), 4, torch.float16, {}),
        ("inpaint", (64, 64), 3, torch.bfloat16, {"strength": 0.5}),
        ("inpaint", (29, 37), 4, torch.float16, {}),
        ("sd2", (13, 11), 3, torch.float32, {"strength": 0.6}),
        ("inpaint", (7, 150), 3, torch.float32, {"only_masked": 5}),
        ("sd2", (101, 97), 4, torch.bfloat16, {"only_masked": 3, "mask_blur": 4}),
        ("inpaint", (97, 61), 4, torch.float32, {"mask_blur": 6, "no_match_border": True}),
    ],
)
def test_bytes_outside_the_mask_stay_at_any_size_alpha_and_dtype(
    models, kind, size, channels, dtype, options
):
    image, mask = picture(*size, channels), rectangle(*size)
    settings = dict(sampler="ddim", steps=4, scale=2.0, eta=1.0, dtype=dtype)
    result = painted(models[kind], image, mask, settings=settings, **options)[0]
    check_kept(result, image, mask)
    if channels == 4 and not options.get("mask_blur"):
        assert (result[mask == 1][:, 3] == 255).all(), "paint is opaque"


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_pixel_is_a_picture(models, kind):
    image = picture(1, 1)
    for options in ({}, {"only_masked": 2}):
        assert painted(models[kind], image, np.ones((1, 1), np.float32), **options)[0].shape == (1, 1, 3)


def test_ten_edits_leave_every_byte_outside_them(models):
    first = image = picture(48, 40, 4)
    touched = np.zeros((48, 40), bool)
    for edit in range(10):
        mask = np.zeros((48, 40), np.float32)
        mask[4 * edit : 4 * edit + 7, 3 * edit : 3 * edit + 11] = 1
        touched |= mask > 0
        kind = KINDS[edit % 2]
        settings = dict(sampler=list(SAMPLERS)[edit], steps=2, scale=1.0)
        image = painted(models[kind], image, mask, seed=edit, settings=settings)[0]
    check_kept(image, first, touched)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_is_that_of_its_own_seed_in_any_batch(models, kind):
    image, mask, prompts = picture(24, 32), rectangle(24, 32), ["a cat", "a dog", "a cat"]
    settings = dict(sampler="ddim", steps=3, scale=2.0, eta=1.0, rng="per-image", exact=True)
    options = {"settings": settings, "strength": 0.7}
    together = painted(models[kind], image, mask, prompts, seed=5, n_samples=2, **options)
    for k, prompt in enumerate(prompts):
        alone = painted(models[kind], image, mask, [prompt], seed=5 + k, **options)[0]
        assert np.array_equal(together[k], alone), k
    assert not np.array_equal(together[0], together[2]), "another seed, another picture"


def test_a_model_that_sees_the_mask_begins_with_numpys_noise_after_the_posterior(models, monkeypatch):
    """Strength 1: the published draws. Below it the picture is encoded too, drawn second."""
    begun = []
    original = Run.sample

    def sample(self, sampler, x_t, halves, noise, *more):
        begun.append((x_t, halves.cond, noise.source.state()))
        return original(self, sampler, x_t, halves, noise, *more)

    monkeypatch.setattr(Run, "sample", sample)
    settings = dict(sampler="ddim", steps=2, scale=1.0)
    model, image, mask = models["inpaint"], picture(32, 32), rectangle(32, 32)
    painted(model, image, mask, ["a", "a"], settings=settings, seed=9)
    x_t, cond, state = begun[0]
    start = torch.from_numpy(np.random.RandomState(9).randn(2, *x_t.shape[1:])).float()
    posterior = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(9))
    assert torch.equal(x_t, start) and torch.equal(state["once.posterior.0"], posterior)
    given = torch.from_numpy(mask)[None, None]
    expected = model.conditioning(cond.context, from_uint8(image), given, posterior)
    torch.testing.assert_close(cond.concat, expected.concat)
    painted(model, image, mask, ["a", "a"], settings=settings, seed=9, strength=0.5)
    assert torch.equal(begun[1][2]["once.posterior.0"], posterior) and "once.posterior.0.1" in begun[1][2]
    assert not torch.equal(begun[1][0], start), "the picture, with noise on it"


def test_latents_of_no_masked_pixel_are_those_of_the_picture(models):
    model, image = models["sd2"], picture(32, 32)
    mask = np.zeros((32, 32), np.float32)
    mask[7:9, 20] = 1  # two latents of 8 pixels
    settings = dict(sampler="euler", steps=2, scale=1.0)
    batch = next(
        iter(make_images(model, Inpaint, init_img=image, mask=mask, prompts=["a"], seed=1, **settings))
    )
    posterior = model.encode_first_stage(from_uint8(image))
    x_0 = model.get_first_stage_encoding(
        posterior, torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    )
    same = torch.isclose(batch.latents, x_0, atol=1e-5).all(1)[0]
    painted_ones = torch.zeros(4, 4, dtype=torch.bool)
    painted_ones[0:2, 2] = True
    assert torch.equal(~same, painted_ones)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_paints_nothing_but_what_the_autoencoder_makes_and_1_is_noise(models, kind):
    model, mask = models[kind], rectangle(32, 48)
    image, other = picture(32, 48), 255 - picture(32, 48)
    settings = dict(sampler="ddim", steps=4, scale=1.0)
    kept = raw(model, image, mask, settings=settings, strength=0.0)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2 if kind == "inpaint" else 1):  # what is left of the picture comes first
        eps = torch.randn(1, 4, 4, 8, generator=generator)
    framed = from_uint8(np.pad(image, ((0, 0), (8, 8), (0, 0)), mode="reflect"))
    x_0 = model.get_first_stage_encoding(model.encode_first_stage(framed), eps)
    near = (kept - model.decode_first_stage(x_0)[..., 8:-8]).abs().mean()
    far = (raw(model, image, mask, settings=settings, strength=1.0) - kept).abs().mean()
    assert near < 0.4 * far
    with_other = np.where(mask[..., None] > 0, other, image)
    whole = np.ones_like(mask)
    for strength, same in ((1.0, True), (0.9, False)):
        a, b = (raw(model, each, whole, settings=settings, strength=strength) for each in (image, with_other))
        assert torch.equal(a, b) == same, "of what was in the mask nothing is left at strength 1"


def test_half_grey_masks_mix_evenly(models):
    image = picture(32, 40)
    mask = np.zeros((32, 40), np.float32)
    mask[8:24] = np.linspace(0.02, 1, 40, dtype=np.float32)
    full = painted(models["sd2"], image, (mask >= 0.5).astype(np.float32), no_match_border=True)[0]
    result = painted(models["sd2"], image, mask, no_match_border=True)[0]
    inside = mask >= 0.5
    expected = mask[..., None] * full + (1 - mask[..., None]) * image
    assert np.abs(result - expected)[inside].max() <= 0.51
    check_kept(result, image, mask)


def test_the_border_is_matched_unless_asked_not_to(models, monkeypatch):
    """By an autoencoder that shifts all colours by 13 of 255."""
    image, mask = np.full((64, 64, 3), 120, np.uint8), rectangle(64, 64)
    decoded = (from_uint8(image) - 0.1).expand(1, -1, -1, -1)
    monkeypatch.setattr(Run, "decode", lambda *_: decoded)
    steps = [
        np.abs(
            painted(models["sd2"], image, mask, no_match_border=not matched)[0][mask > 0].astype(float) - 120
        ).max()
        for matched in (True, False)
    ]
    assert steps[0] <= 3 and steps[1] >= 12
    assert torch.equal(raw(models["sd2"], image, mask), decoded)


def test_only_the_masked_part_is_seen_at_the_models_size(models, monkeypatch, caplog):
    seen = []
    original = Run.encode_framed
    monkeypatch.setattr(
        Run, "encode_framed", lambda self, images: (seen.append(images.shape), original(self, images))[1]
    )
    image = picture(90, 200)
    mask = np.zeros((90, 200), np.float32)
    mask[80:90, 100:120] = 1
    caplog.set_level(logging.INFO, "ldm")
    result = painted(models["inpaint"], image, mask, only_masked=6)[0]
    check_kept(result, image, mask)
    assert seen == [(1, 3, 64, 64)] and "repainting a part of 32x32 pixels at 64x64" in caplog.text
    monkeypatch.setattr(models["inpaint"], "trained_at", 128)
    painted(models["inpaint"], image, mask, only_masked=6)
    assert seen[1] == (1, 3, 128, 128)


def test_a_part_that_is_made_smaller_loses_no_line_of_the_mask():
    mask = np.zeros((600, 600), np.float32)
    mask[5, 5:590] = mask[5:590, 590] = mask[590, 5] = 1  # of a pixel's width
    region = Region.of(picture(600, 600), mask, 0, 64)
    seen = region.shown_mask()[0, 0]
    assert region.size == (64, 64) and seen[0].all() and seen[:, -1].all() and seen[-1, 0]
    assert not seen[1:-1, :-1].any()


def test_what_is_odd_is_said(models, caplog):
    caplog.set_level(logging.INFO, "ldm")
    painted(models["inpaint"], picture(32, 32), np.ones((32, 32), np.float32))
    assert "the whole image is repainted" in caplog.text
    thin = np.zeros((64, 64), np.float32)
    thin[:, 3] = 1
    painted(models["inpaint"], picture(64, 64), thin)
    assert "finer than the 8 pixels" in caplog.text and "keeps 100 % of it" in caplog.text
    caplog.clear()
    painted(models["sd2"], picture(64, 64), thin)
    assert "finer" not in caplog.text, "latent masking paints every latent that the mask touches"
    assert "nothing is repainted" not in caplog.text
    painted(models["sd2"], picture(64, 64), thin, strength=0.01)
    assert "leaves none to run: nothing is repainted" in caplog.text


def test_transparency_is_shown_on_white(models):
    mask = rectangle(32, 32)
    hidden = picture(32, 32, 4)
    hidden[..., 3] = np.where(mask > 0, 0, 255)
    white = hidden.copy()
    white[mask > 0] = 255
    results = [painted(models["sd2"], image, mask, strength=0.5)[0] for image in (hidden, white)]
    assert np.array_equal(*results), "the colours under it are not seen"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.1}, "strength: got 1.1"),
        ({"strength": float("nan")}, "strength: got nan"),
        ({"raw": True, "only_masked": 8}, "cannot be combined with --only-masked"),
        ({"raw": True, "mask_blur": 8}, "cannot be combined with --mask-blur"),
        ({"mask": np.zeros((32, 32), np.float32)}, "nothing to repaint"),
        ({"mask": np.ones((32, 31), np.float32)}, "the mask is 31x32 and the image is 32x32"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(models, options, message):
    mask = options.pop("mask", None) if "mask" in options else rectangle(32, 32)
    with pytest.raises(InputError, match=message):
        make_images(
            models["sd2"], Inpaint, init_img=picture(32, 32), mask=mask, prompts=["a"], seed=1, **options
        )


@pytest.mark.parametrize("kind", ["depth", "upscale", "unclip-h"])
def test_a_model_for_another_task_is_refused(tmp_path, kind):
    model = tiny_model(tiny_config(kind, tmp_path))
    with pytest.raises(InputError, match="conditioning_key"):
        make_images(
            model, Inpaint, init_img=picture(32, 32), mask=rectangle(32, 32), prompts=["a"], seed=1, **FAST
        )


def test_prompts_and_masks_matter(models):
    """The model that sees the mask is told another one, and another prompt, and paints otherwise."""
    assert isinstance(models["inpaint"], LatentInpaintDiffusion)
    image, mask = picture(32, 32), rectangle(32, 32)
    other = np.roll(mask, 8, axis=1)
    results = [raw(models["inpaint"], image, each) for each in (mask, other)]
    batches = make_images(
        models["inpaint"], Inpaint, init_img=image, mask=mask, prompts=["a dog"], seed=3, **FAST, raw=True
    )
    results.append(next(iter(batches)).images)
    for a, b in itertools.combinations(results, 2):
        assert not torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"invert_mask": True}),
        ({"invert_mask": True}, {}),
        ({}, {"mask_grow": 5}),
        ({"mask_grow": 5}, {"mask_grow": -2, "mask_blur": 2}),
    ],
)
@pytest.mark.parametrize("alpha", [False, True])
def test_a_loaded_mask_heeds_options_that_change(models, before, after, alpha):
    """Another value of an option means the same whether the files are loaded already or not."""
    mask = rectangle(24, 40)
    image = picture(24, 40, 4 if alpha else 3)
    if alpha:
        image[..., 3] = np.where(mask == 1, 0, 255)
    options = {"prompts": ("a",), "seed": 3, **FAST}
    given = None if alpha else mask
    loaded = load_inputs(Inpaint(init_img=image, mask=given, **options, **before))
    defaults = {name: getattr(Inpaint(), name) for name in before}
    changed = load_inputs(replace(loaded, **defaults | after))
    fresh = load_inputs(Inpaint(init_img=image, mask=given, **options, **after))
    results = [next(iter(ldm.generate(models["sd2"], each))).to_uint8()[0] for each in (changed, fresh)]
    assert np.array_equal(*results)
    assert np.array_equal(changed.mask.values, fresh.mask.values)


def test_a_mask_from_transparency_follows_another_image():
    first, second = picture(24, 40, 4), picture(24, 40, 4)
    first[..., 3], second[..., 3] = 255 * (1 - rectangle(24, 40)), 255 * rectangle(24, 40)
    loaded = load_inputs(Inpaint(init_img=first, prompts=("a",)))
    other = load_inputs(replace(loaded, init_img=second))
    assert np.array_equal(other.mask.values, 1 - loaded.mask.values)
