"""Variations and mixes of pictures: by the formulas, as diffusers makes them, and whatever the order."""

import math

import numpy as np
import pytest
import torch
from requesting import make_images, stop_after
from safetensors.torch import save_file
from tiny_models import WIDTH, tiny_config, tiny_model

from ldm.errors import BadImageError, InputError
from ldm.imaging.colour import from_uint8
from ldm.requests import Unclip
from ldm.samplers import SAMPLERS
from ldm.tasks.latents import StoppedAt
from ldm.tasks.unclip import Mix

TASKS = "unclip-h", "unclip-l"
QUICK = dict(sampler="ddim", steps=2, scale=3.0)
SIDE = 32


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


IMAGES = [picture(40, 24), picture(7, 90, 1)]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return {task: tiny_config(task, tmp_path_factory.mktemp(task)) for task in TASKS}


@pytest.fixture(scope="module")
def models(configs):
    return {task: tiny_model(config) for task, config in configs.items()}


@pytest.fixture(params=TASKS)
def model(models, request):
    return models[request.param]


def made(model, images=IMAGES, prompts=("a",), **options) -> list:
    options = {"seed": 3, "height": SIDE, "width": SIDE, "settings": QUICK} | options
    return list(make_images(model, Unclip, init_img=list(images), prompts=list(prompts), **options))


def latents(*args, **options) -> torch.Tensor:
    return torch.cat([batch.latents for batch in made(*args, **options)])


@pytest.fixture
def asked(monkeypatch):
    """Return what a model's network is asked: [(x_t, t, cond), ...]."""

    def watch(model) -> list:
        seen, original = [], model.apply_model
        monkeypatch.setattr(model, "apply_model", lambda *args: seen.append(args) or original(*args))
        return seen

    return watch


def noised(z: torch.Tensor, level: int, eps: torch.Tensor, mean: torch.Tensor, std: torch.Tensor):
    """Return [z', emb(level)] by the published formulas, in float64."""
    betas, alphas_cumprod = [], 1.0
    for i in range(level + 1):
        ends = [math.cos((step / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for step in (i, i + 1)]
        betas.append(min(1 - ends[1] / ends[0], 0.999))
        alphas_cumprod *= 1 - betas[-1]
    scaled = (z.double() - mean) / std
    scaled = math.sqrt(alphas_cumprod) * scaled + math.sqrt(1 - alphas_cumprod) * eps
    angles = level * torch.exp(-math.log(10_000) * torch.arange(WIDTH // 2).double() / (WIDTH // 2))
    position = torch.cat([angles.cos(), angles.sin()]).expand(len(z), -1)
    return torch.cat([scaled * std + mean, position], dim=1)


@pytest.mark.parametrize("task", TASKS)
def test_the_network_is_told_what_the_formulas_say(models, task, asked):
    """Draws in the published order: each picture's, the mix's, the start; the other half is told zeros."""
    model, seen = models[task], asked(models[task])
    weights, levels, count = (2.0, -0.5), (10, 200), 3
    options = {"image_weights": weights, "noise_level": levels, "n_samples": count}
    made(model, prompts=["a", "b", "c"], **options)
    if task == "unclip-l":
        mean, std = torch.linspace(-1, 1, WIDTH).double(), torch.linspace(0.5, 2, WIDTH).double()
    else:
        mean, std = torch.zeros(WIDTH).double(), torch.ones(WIDTH).double()
    generator = torch.Generator().manual_seed(3)
    label = 0
    for image, weight, level in zip(IMAGES, weights, levels, strict=True):
        z = model.embedder(from_uint8(image)).expand(count, -1)
        eps = torch.randn(count, WIDTH, generator=generator)
        label = label + weight / sum(weights) * noised(z, level, eps, mean, std)
    again = noised(label[:, :WIDTH], 50, torch.randn(count, WIDTH, generator=generator), mean, std)
    x_t, _, cond = seen[0]
    torch.testing.assert_close(cond.label[:count], torch.zeros(count, 2 * WIDTH))
    torch.testing.assert_close(cond.label[count:].double(), again, atol=1e-4, rtol=1e-4)
    assert torch.equal(x_t[count:], torch.randn(count, 4, 4, 4, generator=generator))


def test_the_mix_itself_where_it_is_not_noised_again(models, asked):
    model, seen = models["unclip-h"], asked(models["unclip-h"])
    made(model, image_weights=(3, 1), mix_noise_level="off")
    generator = torch.Generator().manual_seed(3)
    label = 0
    for image, weight in zip(IMAGES, (3, 1), strict=True):
        eps = torch.randn(1, WIDTH, generator=generator)
        zero, one = torch.zeros(WIDTH).double(), torch.ones(WIDTH).double()
        label = label + weight / 4 * noised(model.embedder(from_uint8(image)), 0, eps, zero, one)
    torch.testing.assert_close(seen[0][2].label[1:].double(), label, atol=1e-4, rtol=1e-4)


@pytest.mark.few(1)
@pytest.mark.parametrize("task", TASKS)
def test_diffusers_gives_the_same_latents_for_the_same_seed(configs, models, task, tmp_path):
    import diffusers

    from ldm.checkpoint.conversion import ConvertOptions, convert

    file, model = tmp_path / "model.safetensors", models[task]
    save_file({name: x.contiguous() for name, x in model.state_dict().items()}, file)
    convert(file, tmp_path / "folder", ConvertOptions(config=str(configs[task])))
    theirs = diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(tmp_path / "folder", local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(
        prompt="a red apple", negative_prompt="blue", image_embeds=model.embedder(from_uint8(IMAGES[0])),
        noise_level=100, num_inference_steps=4, guidance_scale=4.0, height=64, width=SIDE,
        generator=torch.Generator().manual_seed(3), output_type="latent",
    ).images  # fmt: skip
    settings = dict(sampler="ddim", steps=4, scale=4.0, negative_prompt="blue")
    got = latents(model, IMAGES[:1], ["a red apple"], noise_level=100, height=64, settings=settings)
    assert got.shape == (1, 4, 8, 4) and got.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["per-image", "gpu-philox"])
def test_a_picture_of_a_batch_is_that_of_its_seed_alone(model, rng):
    settings = dict(sampler="euler_a", steps=3, rng=rng, exact=True)
    options = {"image_weights": (2, 1), "noise_level": (0, 300), "settings": settings}
    prompts = ["a", "b", "c"]
    together = latents(model, prompts=prompts, n_samples=2, **options)
    for k, prompt in enumerate(prompts):
        assert torch.equal(latents(model, prompts=[prompt], seed=3 + k, **options)[0], together[k])


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["reference", "per-image"])
@pytest.mark.parametrize("stop", [1, 5])
def test_a_stopped_run_goes_on_exactly(models, rng, stop):
    """In the first batch and in the short second, whose noise on the embeddings is the first rows' again."""
    options = {"prompts": ["a", "b", "c"], "n_samples": 2, "image_weights": (1, 2)}
    options["settings"] = dict(sampler="euler_a", steps=3, rng=rng)
    model = models["unclip-l"]
    whole = made(model, **options)
    with pytest.raises(StoppedAt) as stopped:
        made(model, track=stop_after(stop), **options)
    rest = made(model, resume=stopped.value.position, **options)
    assert len(rest) == (2 if stop == 1 else 1)
    for got, expected in zip(reversed(rest), reversed(whole), strict=False):
        assert torch.equal(got.images, expected.images) and got.seeds == expected.seeds


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler(model, sampler):
    (batch,) = made(model, settings=dict(sampler=sampler, steps=3))
    assert batch.images.shape == (1, 3, SIDE, SIDE) and torch.isfinite(batch.images).all()


@pytest.mark.few(2)
@pytest.mark.parametrize("size", [(1, 1), (13, 17), (31, 47), (64, 65)])
def test_any_size_goes_in_and_comes_out_exactly(models, size):
    height, width = size
    images = [picture(*size), picture(1, 1), picture(width, 3 * height)]
    (batch,) = made(models["unclip-h"], images, height=height, width=width)
    assert batch.images.shape == (1, 3, height, width) and torch.isfinite(batch.images).all()


def test_only_the_proportions_of_the_weights_matter(models):
    model = models["unclip-l"]
    one, other, third = (latents(model, image_weights=weights) for weights in ((2, 1), (-5, -2.5), (1, 2)))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    assert not torch.allclose(one, third, atol=1e-2)


def test_a_picture_of_weight_zero_counts_for_nothing(models):
    model, settings = models["unclip-l"], dict(sampler="ddim", steps=2, rng="per-image")
    alone = latents(model, IMAGES[:1], settings=settings)
    beside = latents(model, image_weights=(1, 0), mix_noise_level="off", settings=settings)
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=0)


def test_the_noise_level_says_how_much_of_the_picture_is_kept(models):
    model = models["unclip-h"]

    def difference(level: int) -> float:
        one, other = (latents(model, [image], noise_level=level) for image in IMAGES)
        return float((one - other).abs().mean())

    assert difference(0) > 20 * difference(999) > 0


def test_a_prompt_and_a_negative_prompt_count_beside_the_picture(models):
    model, negative = models["unclip-l"], dict(sampler="ddim", steps=2, scale=3.0, negative_prompt="blue")
    plain = latents(model)
    assert not torch.allclose(plain, latents(model, prompts=["b"]), atol=1e-3)
    assert not torch.allclose(plain, latents(model, settings=negative), atol=1e-3)


def test_scale_one_makes_one_pass(models, asked):
    seen = asked(models["unclip-h"])
    made(models["unclip-h"], settings=dict(sampler="ddim", steps=2, scale=1.0))
    assert [len(x_t) for x_t, *_ in seen] == [1, 1]


def test_start_noise_may_be_given(models):
    model, noise = models["unclip-h"], torch.randn(1, 4, SIDE // 8, SIDE // 8)
    given = latents(model, latents=noise)
    assert torch.equal(given, latents(model, latents=noise)) and not torch.equal(given, latents(model))
    with pytest.raises(InputError, match="latents are 1x4x2x2"):
        made(model, latents=torch.zeros(1, 4, 2, 2))


def test_bfloat16_gives_about_the_same_picture(models):
    exact, rounded = (
        made(models["unclip-l"], settings=dict(sampler="ddim", steps=3, scale=3.0, dtype=dtype))[0].images
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.1


def test_an_encoder_that_gives_nan_is_an_error_of_one_line(models, monkeypatch):
    nan = torch.full((1, WIDTH), torch.nan)
    monkeypatch.setattr(models["unclip-h"].embedder, "forward", lambda images: nan)
    with pytest.raises(BadImageError, match="image encoder gave NaN"):
        made(models["unclip-h"])


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        (0, {}, "no image"),
        (2, {"weights": [1.0]}, "1 weight for 2 images"),
        (1, {"weights": [0.0]}, "0, sum to 0"),
        (3, {"weights": [0.1, 0.2, -0.3]}, "0.1, 0.2, -0.3, sum to 0"),
        (2, {"weights": [1.0, math.nan]}, "within 1e"),
        (2, {"weights": [1e308, 1e308]}, "within 1e"),
        (3, {"noise_level": [1, 2]}, "2 noise levels for 3 images"),
        (1, {"noise_level": 1000}, "noise level 1000: expected a whole number from 0 to 999"),
        (1, {"noise_level": -1}, "noise level -1"),
        (1, {"noise_level": 1.5}, "noise level 1.5"),
        (2, {"mix_noise_level": 1000}, "noise level 1000"),
    ],
)
def test_mixes_that_cannot_be_are_refused_at_once(models, pictures, options, message):
    with pytest.raises(InputError, match=message):
        Mix.of(pictures, **options)
    own = {"image_weights" if name == "weights" else name: value for name, value in options.items()}
    with pytest.raises(InputError):
        made(models["unclip-h"], IMAGES[:1] * pictures, **own)


def test_a_model_of_fewer_levels_or_of_another_task_is_refused_at_once(models, tiny_model, monkeypatch):
    size = {"seed": 1, "height": 8, "width": 8}
    with pytest.raises(InputError, match="another task.*crossattn-adm"):
        make_images(tiny_model, Unclip, init_img=IMAGES, prompts=["a"], **size)
    model = models["unclip-h"]
    monkeypatch.setattr(model.noise_augmentor, "max_noise_level", 40)
    with pytest.raises(InputError, match="noise level 50: expected a whole number from 0 to 39"):
        list(make_images(model, Unclip, init_img=IMAGES, prompts=["a"], **size))
    with pytest.raises(InputError, match="unknown sampler|eulr"):
        make_images(model, Unclip, init_img=IMAGES[:1], prompts=["a"], sampler="eulr", **size)
