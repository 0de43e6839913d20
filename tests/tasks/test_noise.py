"""What is drawn: in the order that was recorded from the reference scripts, or by the key of each draw."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from requesting import make_images, run_of
from torch.overrides import TorchFunctionMode

from golden_cases import cases
from ldm.diffusion.cond import Cond
from ldm.diffusion.philox import cuda_normal
from ldm.diffusion.prediction import Prediction
from ldm.errors import InputError
from ldm.requests import Img2Img, Txt2Img, fields_of
from ldm.samplers import SAMPLERS, make_sampler, sample_loop
from ldm.tasks.latents import Position, SampleState
from ldm.tasks.noise import PURPOSES, RNGS, NoiseSource, make_noise_source
from ldm.tasks.run import Halves

STEPS = 4
CPU = torch.device("cpu")
KEYED = [name for name, row in RNGS.items() if row.own_seeds]
PROMPTS = ["a", "a red apple", "b", "", "c d"]
SIZE = {"height": 16, "width": 32}


def draws(rng: str, seed: int = 42, batch_size: int = 2, pictures: int = 8, **options) -> NoiseSource:
    return make_noise_source(rng, seed, CPU, batch_size, pictures, **options)


@pytest.fixture
def record(monkeypatch) -> list[tuple[str, tuple[int, ...]]]:
    """Write down every draw: which generator, which shape."""
    drawn = []
    randn, generator = torch.randn, torch.Generator
    on_device: list[torch.Generator] = []

    def spy(shape, *, generator, device=None):
        drawn.append(("cpu" if device is None else "device", tuple(shape)))
        assert generator in on_device
        return randn(shape, generator=generator, device=device)

    def made(*args):
        on_device.append(generator(*args))
        return on_device[-1]

    monkeypatch.setattr(torch, "randn", spy)
    monkeypatch.setattr(torch, "Generator", made)
    monkeypatch.setattr(torch, "randn_like", lambda *args, **kwargs: pytest.fail("drew elsewhere"))
    return drawn


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("sampler", "fixed_code", "before", "per_iteration"),
    [
        ("ddim", False, 0, 1 + STEPS),
        ("plms", False, 0, 1 + STEPS + 1),
        ("dpm", False, 0, 1),
        ("ddim", True, 1, STEPS),
    ],
)
def test_txt2img(tiny_model, record, sampler, fixed_code, before, per_iteration):
    settings = dict(sampler=sampler, steps=STEPS)
    batches = make_images(
        tiny_model,
        Txt2Img,
        prompts=["a", "b"],
        seed=42,
        height=16,
        width=32,
        n_samples=2,
        n_iter=2,
        **settings,
        fixed_code=fixed_code,
    )
    assert len(list(batches)) == 2
    assert record == [("device", (2, 4, 2, 4))] * (before + 2 * per_iteration)


def test_img2img(tiny_model, record):
    image = np.zeros((16, 32, 3), np.uint8)
    batches = make_images(
        tiny_model,
        Img2Img,
        init_img=image,
        prompts=["a", "b"],
        seed=42,
        strength=0.8,
        n_samples=2,
        n_iter=2,
        sampler="ddim",
        steps=5,
    )
    assert len(list(batches)) == 2
    assert record == [("cpu", (2, 4, 2, 4))] + [("device", (2, 4, 2, 4))] * (2 * (1 + 4))


def test_on_the_cpu_both_generators_are_one_stream():
    noise = draws("reference", 7).batch(0, 2)
    got = torch.stack([noise.normal("posterior", 4, 8, 8), noise.normal("start", 4, 8, 8)])
    torch.manual_seed(7)
    assert torch.equal(got, torch.stack([torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)]))


def test_the_global_generator_is_left_alone(tiny_model):
    before = torch.get_rng_state()
    list(
        make_images(tiny_model, Txt2Img, prompts=["a"], seed=1, height=16, width=16, sampler="ddim", steps=2)
    )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", cases("rng_torch_cpu"), ids=lambda case: case.name)
def test_reference_draws_torchs_numbers(case):
    for seed in case.config["seeds"]:
        source = draws("reference", seed)
        for i, (source.batch_size, *shape) in enumerate(case.config["shapes"]):
            drawn = source.batch(0, source.batch_size).normal("start", *shape).flatten()
            case.check(f"seed{seed}.draw{i}.first256", drawn[:256])
            case.check(f"seed{seed}.draw{i}.every997th", drawn[::997])


@pytest.mark.parametrize("case", cases("rng_numpy"), ids=lambda case: case.name)
def test_reference_starts_from_numpys_numbers_where_the_published_script_does(case):
    for seed in case.config["seeds"]:
        b, *shape = case.expected[f"seed{seed}.randn"].shape
        whole = draws("reference", seed, batch_size=b, numpy_start=True).batch(0, b).normal("start", *shape)
        case.check(f"seed{seed}.randn", whole)
        single = draws("reference", seed, batch_size=1, numpy_start=True)
        assert torch.equal(torch.cat([single.batch(k, 1).normal("start", *shape) for k in range(b)]), whole)


def test_reference_goes_on_from_a_saved_state():
    x = torch.empty(2, 4, 3, 5)
    source = draws("reference")
    noise = source.batch(0, 2)
    noise.normal("posterior", 4, 3, 5)
    noise.at(0, "step")(x)
    other = draws("reference", seed=1)
    other.restore(source.state())
    for following in (source.batch(0, 2), source.batch(2, 1)):
        copy = other.batch(following.first, following.count)
        for key in (("start", 4, 3, 5), ("posterior", 4, 3, 5)):
            assert torch.equal(copy.normal(*key), following.normal(*key))
        assert torch.equal(copy.at(2, "step")(x), following.at(2, "step")(x))


def test_per_image_draws_what_it_always_drew():
    """These numbers may never change: every seed in people's metadata hangs on them."""
    noise = draws("per-image").batch(0, 2)
    start = noise.normal("start", 4, 8, 8)
    assert (start.dtype, start.shape) == (torch.float32, (2, 4, 8, 8))
    digest = hashlib.sha256(start.numpy().tobytes()).hexdigest()
    assert digest == "2fdc72ecfe8adcc03496091a9addc64b2bd4d1b0152689bfd8b89c48e979486b"
    assert {p: noise.at(3, p)(torch.empty(2, 1, 1, 3)).numpy().tobytes().hex() for p in PURPOSES} == {
        "start": "c3cb493fcaff433e20cafd3e8dc462be27b7efbf226b7abf",
        "step": "8f6c773f7b6e9ebfead8f33cf9ba183e83a0b53f0f8b533f",
        "keep": "b85857bfa621543fe3f5ae3f48b4cbbe8b0a363f0799153f",
        "posterior": "db86e13ff8651bbf4ec8983f63980cc0561ea53fdcc77bbf",
        "conditioning": "e755863c221b383ebf08713efb6dc9bf1b5f9c3ff30022bf",
    }
    assert torch.equal(start[1:], draws("per-image", seed=43).batch(0, 1).normal("start", 4, 8, 8))


@pytest.mark.parametrize("rng", KEYED)
def test_no_two_keys_give_the_same_numbers(rng):
    x = torch.empty(1, 4, 8, 8)
    drawn = {}
    for seed, stage in itertools.product((0, 1, 2**32 - 1), (0, 1) if rng == "per-image" else (0,)):
        noise = draws(rng, seed, pictures=1).batch(0, 1, stage=stage)
        for purpose in PURPOSES:
            drawn[seed, stage, purpose] = noise.normal(purpose, 4, 8, 8)
            for i in range(3) if purpose in ("step", "keep") else ():
                source = noise.at(i, purpose)
                for call in range(2):
                    drawn[seed, stage, purpose, i, call] = source(x)
        for purpose in ("step", "keep"):
            del drawn[seed, stage, purpose]  # outside the steps that is step 0
        drawn[seed, stage, "conditioning", "second"] = noise.normal("conditioning", 4, 8, 8, call=1)
    flat = torch.stack([x.flatten() for x in drawn.values()])
    correlations = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlations.abs().max() < 6 / 16  # six standard deviations of 256 numbers each


@pytest.mark.parametrize("rng", KEYED)
def test_keyed_draws_know_no_order_and_no_batch(rng):
    x = torch.empty(3, 4, 2, 2, dtype=torch.float64)
    source = draws(rng)
    noise = source.batch(0, 3)
    forward = [noise.at(i, "step")(x) for i in range(4)]
    backward = [source.batch(0, 3).at(i, "step")(x) for i in reversed(range(4))][::-1]
    assert all(torch.equal(*pair) for pair in zip(forward, backward, strict=True))
    alone = [draws(rng, 42 + k, 1, 1).batch(0, 1).at(2, "step")(x[:1]) for k in range(3)]
    assert torch.equal(torch.cat(alone), forward[2]) and forward[2].dtype == torch.float64
    assert noise.seeds == (42, 43, 44) and source.batch(5, 2).seeds == (47, 48)


def test_gpu_philox_draws_a_tensor_for_the_start_and_one_for_each_step():
    """As a generator of each picture's own would, also where a run starts from a later step."""
    x = torch.empty(2, 4, 8, 8)
    noise = draws("gpu-philox", 7).batch(0, 2, start=3)
    drawn = [noise.normal("start", 4, 8, 8), noise.at(3, "step")(x), noise.at(4, "step")(x)]
    for number, tensor in enumerate(drawn):
        expected = np.stack([cuda_normal(seed, number, 256) for seed in (7, 8)])
        assert np.array_equal(tensor.numpy().reshape(2, -1), expected)


def test_there_is_a_flag_for_every_source():
    assert fields_of(Txt2Img)["rng"].choices == tuple(RNGS)
    assert Txt2Img().rng == "reference" == next(iter(RNGS))
    with pytest.raises(InputError, match=r"'mersenne'.*reference, per-image, gpu-philox"):
        draws("mersenne")


@pytest.mark.parametrize("rng", KEYED)
def test_pictures_beyond_the_last_seed_are_refused_before_anything_is_made(tiny_model, rng):
    run = {"seed": 2**32 - 3, "settings": dict(rng=rng), **SIZE}
    make_images(tiny_model, Txt2Img, prompts=["a", "b", "c"], **run)
    make_images(tiny_model, Txt2Img, prompts=["a", "b", "c"], n_iter=9, fixed_code=True, **run)
    make_images(tiny_model, Txt2Img, prompts=["a", "b"], n_iter=2, **run | {"settings": {}})
    with pytest.raises(InputError, match="4 images .* 4294967293 to 4294967296: expected 0 to 4294967295"):
        make_images(tiny_model, Txt2Img, prompts=["a", "b"], n_iter=2, **run)
    with pytest.raises(InputError, match="-1 to -1"):
        draws(rng, -1, pictures=1)


def made(batches) -> dict[str, list]:
    batches = list(batches)
    return {
        "latents": torch.cat([batch.latents for batch in batches]),
        "images": torch.cat([batch.images for batch in batches]),
        "seeds": [seed for batch in batches for seed in batch.seeds],
    }


def same(a: dict, b: dict) -> bool:
    return torch.equal(a["latents"], b["latents"]) and torch.equal(a["images"], b["images"])


def one_by_one(model, settings: dict) -> dict:
    """Make the picture of each prompt in a run of its own."""
    runs = [
        made(make_images(model, Txt2Img, prompts=[p], seed=7 + k, **settings, **SIZE))
        for k, p in enumerate(PROMPTS)
    ]
    return {name: torch.cat([run[name] for run in runs]) for name in ("latents", "images")}


class OtherKernels(TorchFunctionMode):
    """Change the result of every layer in its last bits, at random, as kernels that round otherwise do.

    How far an image moves by it depends on the model and the sampler: it is the unit in which images of
    differently batched runs are compared.
    """

    LAYERS = (F.linear, F.conv2d, F.scaled_dot_product_attention, F.group_norm, F.layer_norm)

    def __init__(self) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(0)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func not in self.LAYERS:
            return out
        return out * (1 + torch.finfo(out.dtype).eps * (2 * torch.rand(out.shape, generator=self.random) - 1))


def assert_rounded_otherwise(a: dict, b: dict, make) -> None:
    """Check that two results of `make` differ by no more than other kernels could make them."""
    with OtherKernels():
        moved = make()
    for name in ("latents", "images"):
        limit = 2 * float((moved[name] - b[name]).abs().max())
        assert 0 < limit < 0.01 * float(b[name].abs().max())
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=limit)


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_is_the_same_alone_and_in_a_batch(tiny_model, sampler):
    """Bit for bit with one sample at a time; batched kernels may round differently."""
    settings = dict(sampler=sampler, steps=3, rng="per-image", exact=True)
    alone = one_by_one(tiny_model, settings)
    exact = made(make_images(tiny_model, Txt2Img, prompts=PROMPTS, seed=7, n_samples=3, **settings, **SIZE))
    assert exact["seeds"] == [7, 8, 9, 10, 11]
    assert same(exact, alone)
    settings = dict(sampler=sampler, steps=3, rng="per-image", n_samples=5)

    def loose() -> dict:
        return made(make_images(tiny_model, Txt2Img, prompts=PROMPTS, seed=7, **settings, **SIZE))

    assert_rounded_otherwise(alone, loose(), loose)


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", KEYED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_batch_size_changes_a_bit(tiny_model, rng, dtype):
    settings = dict(sampler="euler_a", steps=2, rng=rng, exact=True, dtype=dtype)
    alone = one_by_one(tiny_model, settings)
    for batch_size in (1, 2, 3, 5):
        run = {"seed": 7, "n_samples": batch_size, "settings": settings, **SIZE}
        assert same(made(make_images(tiny_model, Txt2Img, prompts=PROMPTS, **run)), alone)


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("rng", KEYED)
def test_img2img_gives_the_same_picture_alone_and_in_a_batch(tiny_model, sampler, rng):
    image = np.random.default_rng(0).integers(0, 256, (16, 32, 3), np.uint8)
    settings = dict(sampler=sampler, steps=3, rng=rng, exact=True)
    run = {"settings": settings, "strength": 0.7}
    together = made(
        make_images(tiny_model, Img2Img, init_img=image, prompts=PROMPTS[:3], seed=7, n_samples=2, **run)
    )
    alone = made(make_images(tiny_model, Img2Img, init_img=image, prompts=[PROMPTS[2]], seed=9, **run))
    assert torch.equal(alone["images"], together["images"][2:])


@pytest.mark.slow
def test_a_long_prompt_changes_no_picture_beside_it(tiny_model):
    """Neither by padding the shorter contexts, nor with other kernels, nor where guidance is off."""
    prompts = ["a", "a red apple and a cat, " * 20, "b", "a dog, " * 40]
    for scale, extra in ((9.0, {"guidance_rescale": 0.7, "dynamic_threshold": 0.995}), (1.0, {})):
        for exact in (True, False):
            settings = dict(sampler="euler_a", steps=2, exact=exact, rng="per-image", scale=scale, **extra)

            def make(prompts=prompts, seed=7, settings=settings) -> dict:
                images = make_images(
                    tiny_model, Txt2Img, prompts=prompts, seed=seed, n_samples=4, settings=settings, **SIZE
                )
                return made(images)

            together, alone = make(), [make([prompt], 7 + k) for k, prompt in enumerate(prompts)]
            alone = {name: torch.cat([one[name] for one in alone]) for name in ("latents", "images")}
            if exact:
                assert same(together, alone)
            else:
                assert_rounded_otherwise(alone, together, make)


def test_iterations_go_on_counting(tiny_model):
    run = {"settings": dict(sampler="euler_a", steps=2, rng="per-image", exact=True), "n_samples": 2, **SIZE}
    long = made(make_images(tiny_model, Txt2Img, prompts=PROMPTS[:3], seed=7, n_iter=2, **run))
    assert long["seeds"] == [7, 8, 9, 10, 11, 12]
    assert torch.equal(
        long["images"][3:],
        made(make_images(tiny_model, Txt2Img, prompts=PROMPTS[:3], seed=10, **run))["images"],
    )


def test_fixed_code_gives_every_picture_the_seed_of_the_run(tiny_model):
    run = {"settings": dict(sampler="euler_a", steps=2, rng="per-image", exact=True), "n_samples": 3, **SIZE}
    fixed = made(
        make_images(tiny_model, Txt2Img, prompts=["a", "b", "a"], seed=7, n_iter=2, fixed_code=True, **run)
    )
    assert fixed["seeds"] == [7] * 6
    images = fixed["images"]
    assert torch.equal(images[0], images[2]) and torch.equal(images[:3], images[3:])
    assert not torch.equal(images[0], images[1])
    assert torch.equal(
        images[1:2], made(make_images(tiny_model, Txt2Img, prompts=["b"], seed=7, **run))["images"]
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_masked_sampling_is_the_same_alone_and_in_a_batch(tiny_model, sampler):
    """The kept part draws too; elementwise arithmetic stands in for the network."""
    x_0 = torch.linspace(-1, 1, 32).view(1, 2, 4, 4)
    mask = (torch.arange(4) < 2).view(1, 1, 1, 4)

    def denoise(x_t, t, cond):
        alpha, sigma = tiny_model.schedule.alpha_sigma(t, x_t)
        clean = x_t * alpha / (alpha * alpha + sigma * sigma * 4)
        return Prediction(clean, (x_t - alpha * clean) / sigma)

    def last(seed, b):
        noise = draws("per-image", seed, b).batch(0, b)
        loop = sample_loop(
            make_sampler(sampler, tiny_model.schedule, 4), denoise, noise.normal("start", 2, 4, 4), None,
            noise=noise, keep_mask=mask.expand(b, 1, 4, 4), keep_x_0=x_0.expand(b, -1, -1, -1),
        )  # fmt: skip
        return list(loop)[-1].x_t

    together = last(7, 3)
    assert torch.isfinite(together).all()
    for k in range(3):
        assert torch.equal(last(7 + k, 1), together[k : k + 1])


@pytest.mark.few(6)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("rng", RNGS)
def test_a_resumed_run_draws_what_an_unbroken_one_does(tiny_model, sampler, rng):
    kept = {}

    def track(steps, total):
        for step in steps:
            kept[step.i] = SampleState(step.i + 1, step.x_t, tuple(run.sampler.memory)), run.noise.state()
            yield step

    prompts = ["a", "b"]
    options = {"prompts": prompts, "seed": 42, "n_samples": 2, "sampler": sampler, "steps": 4, "rng": rng}
    run = run_of(tiny_model, Txt2Img, track=track, **options)
    halves = Halves(*map(Cond, run.text.contexts(prompts, one_by_one=False)))
    noise = run.noise.batch(0, 2, start=1)
    unbroken = run.sample(run.sampler, noise.normal("start", 4, 2, 4), halves, noise, start=1)
    state, drawn = kept[1]
    again = run_of(tiny_model, Txt2Img, resume=Position(prompts, 0, 0, state, drawn), **options)
    resumed = again.sample(again.sampler, torch.zeros_like(state.x_t), halves, again.noise.batch(0, 2, 1), 1)
    assert torch.equal(unbroken, resumed)
