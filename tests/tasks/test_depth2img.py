"""Depth to image on tiny models: sizes, samplers, strength, batches, stops, and where the map comes from."""

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from requesting import make_images, stop_after
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_model

from ldm.errors import ConfigError, InputError, WrongModelError
from ldm.imaging.depth import inverse_depth, read_depth
from ldm.imaging.files import open_image
from ldm.models.latent_depth import concat_depth
from ldm.models.midas import MiDaSInference, network_size
from ldm.requests import Depth2Img
from ldm.samplers import SAMPLERS
from ldm.tasks.depth2img import alpha_depth, load_depth_network
from ldm.tasks.latents import StoppedAt, read_latents, stopped_file
from ldm.training.extra_inputs import extra_input_of

NARROW = dict(
    stem=16, channels=[32, 64, 96], depths=[1, 2, 2], groups=4, width=48, depth=4, num_heads=4,
    taps=[1, 3], grid=4, classes=5, features=24,
)  # fmt: skip
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (40, 56, 3), np.uint8)
DEPTH = np.linspace(2, 5, 40)[:, None] * np.ones((1, 56)) + np.linspace(0, 1, 56)
PROMPTS = ["a", "b", "c"]
QUICK = dict(steps=2)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model(tiny_config("depth", tmp_path_factory.mktemp("depth")))


@pytest.fixture(scope="session")
def network():
    """Return a small depth network with random weights, none of them zero."""
    network = MiDaSInference(sizes=NARROW)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, weight in network.named_parameters():
            noise = torch.randn_like(weight)
            weight.data = noise * weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.2 * noise
            weight.data += name.endswith("weight") and weight.ndim == 1
        network.model.scratch.output_conv[-2].bias.data += 2  # else half of the depths are cut off at 0
    return network


@pytest.fixture
def seeing(model, network):
    """Return the model with that network for the time of a test."""
    model.depth_model = network
    yield model
    model.depth_model = None


def made(model, image=IMAGE, prompts=PROMPTS[:1], **options):
    options = {"depth": DEPTH, "seed": 3, "settings": QUICK} | options
    return torch.cat(
        [batch.images for batch in make_images(model, Depth2Img, init_img=image, prompts=prompts, **options)]
    )


@pytest.mark.few(2)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_sees_depth_and_prompt(model, sampler):
    settings = dict(sampler=sampler, steps=3, schedule=SAMPLERS[sampler].cls.count_exact_spacing)
    first = made(model, settings=settings)
    assert first.shape == (1, 3, 40, 56) and bool(first.isfinite().all())
    assert not torch.equal(first, made(model, settings=settings, depth=DEPTH[:, ::-1]))
    assert not torch.equal(first, made(model, settings=settings, prompts=["z"]))


@pytest.mark.few(2)
@pytest.mark.parametrize("size", [(1, 1), (1, 67), (31, 32), (33, 61), (64, 64), (97, 13), (101, 103)])
def test_any_size_comes_out_exactly(model, seeing, size):
    image = RNG.integers(0, 256, (*size, 3), np.uint8)
    depth = RNG.random(size)
    for given in (depth, None):
        images = made(seeing, image, depth=given)
        assert images.shape == (1, 3, *size) and bool(images.isfinite().all())
    assert made(model, None, depth=depth).shape == (1, 3, *size)


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["per-image", "gpu-philox"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_picture_is_the_same_alone_and_in_a_batch(model, rng, strength):
    settings = dict(sampler="euler_a", steps=3, rng=rng, exact=True)
    together = made(model, prompts=PROMPTS, n_samples=2, strength=strength, settings=settings)
    for k, prompt in enumerate(PROMPTS):
        alone = made(model, prompts=[prompt], seed=3 + k, strength=strength, settings=settings)
        assert torch.equal(together[k : k + 1], alone)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "rng, image, stop", [("reference", IMAGE, 5), ("reference", None, 1), ("per-image", IMAGE, 1)]
)
def test_going_on_is_exact(seeing, tmp_path, rng, image, stop):
    """In the first batch and in the short second; with an estimated map, and with one alone."""
    options = {
        "depth": None if image is not None else DEPTH,
        "settings": dict(sampler="euler_a", steps=4, rng=rng),
    }
    options |= {"seed": 3, "n_samples": 2}
    whole = list(make_images(seeing, Depth2Img, init_img=image, prompts=PROMPTS, **options))
    run, before = (
        make_images(seeing, Depth2Img, init_img=image, prompts=PROMPTS, track=stop_after(stop), **options),
        [],
    )
    with pytest.raises(StoppedAt) as stopped:
        before.extend(iter(lambda: next(run), None))
    path = tmp_path / "s.safetensors"
    path.write_bytes(stopped_file(stopped.value.position, {"task": "depth2img"}))
    position = read_latents(path).position
    after = list(make_images(seeing, Depth2Img, init_img=image, prompts=PROMPTS, resume=position, **options))
    assert [batch.prompts for batch in [*before, *after]] == [batch.prompts for batch in whole]
    for mine, its in zip([*before, *after], whole, strict=True):
        assert torch.equal(mine.images, its.images) and torch.equal(mine.latents, its.latents)
        assert mine.seeds == its.seeds


@pytest.mark.slow
def test_the_published_strength_1_leaves_a_step_out_and_an_exact_one_does_not(model):
    """Both from pure noise: nothing of the picture's colours is left, only its size."""
    other = 255 - IMAGE
    counts = {}
    for name, settings in {
        "published": dict(steps=5),
        "30": dict(steps=30),
        "exact": dict(steps=5, schedule="uniform"),
        "euler": dict(sampler="euler", steps=5),
    }.items():
        seen = []
        settings["scale"] = 1
        count = {"track": lambda steps, total, seen=seen: seen.append(total) or steps, "settings": settings}
        one = made(model, strength=1, **count)
        if name != "30":
            assert torch.equal(one, made(model, other, strength=1, settings=settings))
            assert torch.equal(one, made(model, None, settings=settings))
        counts[name] = seen[0]
    assert counts == {"published": 4, "30": 29, "exact": 5, "euler": 5}


def test_strength_0_keeps_the_picture_and_more_keeps_less(model):
    def far(strength):
        images = made(model, strength=strength, settings=dict(steps=10, scale=1))
        return float((images - kept).abs().mean())

    kept = made(model, strength=0, settings=dict(steps=1000))  # to the least noise, through the VAE
    distances = [far(strength) for strength in (0, 0.3, 0.7, 0.9)]
    assert distances == sorted(distances) and distances[0] < 0.2 * distances[-1]
    assert not torch.equal(made(model), made(model, strength=1))
    assert torch.equal(made(model), made(model, strength=0.9)), "the published default"


@pytest.mark.parametrize("strength", [-0.1, 1.0001, float("nan")])
def test_another_strength_is_refused(model, strength):
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        make_images(model, Depth2Img, init_img=IMAGE, prompts=["a"], depth=DEPTH, seed=1, strength=strength)


def test_one_published_step_from_noise_is_none(model, caplog):
    with pytest.raises(InputError, match="use --steps 2"):
        made(model, strength=1, settings=dict(steps=1))
    assert made(model, strength=1, settings=dict(sampler="euler", steps=1)).isfinite().all()
    assert made(model, settings=dict(steps=1)).isfinite().all()
    assert "nothing is repainted" in caplog.text


def test_only_the_order_of_depths_counts_not_their_unit(model):
    expected = made(model)
    assert torch.equal(made(model, depth=64 * DEPTH.astype(np.float32)), expected)
    torch.testing.assert_close(made(model, depth=DEPTH / 3 - 7), expected, atol=1e-3, rtol=0)


def test_unknown_depths_are_filled_before_the_model_sees_them(model):
    holed = DEPTH.copy()
    holed[10:14, 20:26], holed[0, 0] = np.nan, np.inf
    images = made(model, depth=holed)
    assert bool(images.isfinite().all())
    far = float((images - made(model, depth=-DEPTH)).abs().mean())
    assert float((images - made(model)).abs().mean()) < 0.1 * far
    with pytest.raises(InputError, match="every pixel"):
        made(model, depth=np.full((40, 56), np.nan))


def test_a_flat_map_is_allowed_with_a_warning(model, caplog):
    assert bool(made(model, depth=np.full((40, 56), 7.0)).isfinite().all())
    assert "flat" in caplog.text


def test_a_map_of_another_size_is_resized_if_its_shape_is_the_same(model, caplog):
    caplog.set_level(logging.INFO, "ldm")
    expected = made(model)
    assert "resized" not in caplog.text
    smooth = torch.from_numpy(DEPTH).float()[None, None]
    large = torch.nn.functional.interpolate(smooth, (120, 168), mode="bicubic")[0, 0].numpy()
    close = made(model, depth=large)
    assert "168x120" in caplog.text and "56x40" in caplog.text
    other = made(model, depth=-DEPTH)
    assert float((close - expected).abs().mean()) < 0.1 * float((close - other).abs().mean())
    made(model, depth=np.resize(DEPTH, (13, 18)))  # 18.2 rounded
    made(model, depth=np.resize(DEPTH, network_size(40, 56)))  # the size of the network's own maps
    for wrong in [(40, 58), (42, 56), (56, 40), (64, 64)]:
        with pytest.raises(InputError, match="another aspect ratio"):
            made(model, depth=np.resize(DEPTH, wrong))


def test_padding_mirrors_the_map_like_the_picture(model):
    """What the model sees in the middle is what it would see of the mirrored map, at the same place."""
    seen = []
    original, model.apply_model = model.apply_model, lambda *a: seen.append(a[2]) or original(*a)
    try:
        made(model)  # 40 x 56 in 64 x 64: 12 rows and 4 columns on each side
        mirrored = np.pad(DEPTH, ((12, 12), (4, 4)), mode="reflect")
        made(model, np.pad(IMAGE, ((12, 12), (4, 4), (0, 0)), mode="reflect"), depth=mirrored)
    finally:
        del model.apply_model
    framed, whole = (x.concat for x in (seen[0], seen[-1]))
    assert torch.equal(framed, whole) and framed.shape[1:] == (1, 8, 8)
    expected = concat_depth(torch.from_numpy(mirrored).float()[None, None], (8, 8))
    assert torch.equal(framed[:1], expected) and framed.min() == -1 and framed.max() == 1


def test_true_disparity_reaches_the_model_as_depth_does_in_training(model, caplog):
    """scikit-image's motorcycle (Middlebury 2014) with its measured disparity, whose holes are infinite."""
    found = importlib.util.find_spec("skimage")
    folder = found and Path(found.origin).parent / "data"
    if not folder or not (folder / "motorcycle_disp.npz").exists():
        pytest.skip("scikit-image is not installed: pip install scikit-image")
    caplog.set_level(logging.INFO, "ldm")
    disparity = read_depth(folder / "motorcycle_disp.npz")
    image = open_image(folder / "motorcycle_left.png")
    small = np.asarray(image.resize((185, 125), 4))  # a quarter; the map keeps its 741 x 500
    seen = []
    original, model.apply_model = model.apply_model, lambda *a: seen.append(a[2]) or original(*a)
    try:
        images = made(model, small, depth=disparity)
        cut = np.s_[180:308, 200:328]  # 128 x 128, nothing to pad
        made(model, np.asarray(image)[cut], depth=disparity[cut])
    finally:
        del model.apply_model
    assert images.shape == (1, 3, 125, 185) and "27226 of 370500 pixels" in caplog.text
    shown = seen[0].concat[0, 0]  # (16, 24), of which the frame's 192 x 128 pads 3 + 4 and 1 + 2
    assert shown.min() == -1 and shown.max() == 1
    depth = torch.from_numpy(inverse_depth(disparity))[None, None]
    inner = torch.nn.functional.interpolate(depth, (125, 185), mode="area")
    middle = torch.nn.functional.avg_pool2d(inner[..., 7:119, 5:181], 8)[0, 0]  # latents 1.. of the frame
    places = [(dy, dx) for dy in (0, 1, 2) for dx in (0, 1, 2)]
    parts = [shown[dy : dy + 14, dx : dx + 22] for dy, dx in places]
    agreement = [torch.corrcoef(torch.stack([x.flatten(), middle.flatten()]))[0, 1] for x in parts]
    assert max(agreement) == agreement[places.index((1, 1))] > 0.95, "nearer is larger, and in its place"
    pictures = torch.zeros(1, 3, 128, 128)
    cut_depth = torch.from_numpy(inverse_depth(disparity[cut]))[None, None]
    trained = extra_input_of(model, 0.0).encode(pictures, {"depth": cut_depth})
    assert torch.equal(seen[-1].concat[:1], trained)


def test_both_halves_of_guidance_see_the_map(model):
    seen = []
    original, model.apply_model = model.apply_model, lambda *a: seen.append(a[2]) or original(*a)
    try:
        made(model)
    finally:
        del model.apply_model
    concat, context = seen[0].concat, seen[0].context
    assert torch.equal(concat[0], concat[1]) and not torch.equal(context[0], context[1])


def test_the_model_s_own_network_is_asked_once_for_a_run(seeing, network):
    run = {"depth": None, "prompts": PROMPTS, "n_iter": 2, "seed": 3, "settings": QUICK}
    batches = list(make_images(seeing, Depth2Img, init_img=IMAGE, **run))
    assert len(batches) == 6 and len({id(batch.extras["depth"]) for batch in batches}) == 1
    seen = batches[0].extras["depth"]
    want = network.depth(torch.from_numpy(IMAGE).permute(2, 0, 1)[None] / 127.5 - 1)
    assert seen.shape == network_size(40, 56)
    np.testing.assert_allclose(seen, want[0, 0], atol=1e-4, rtol=1e-4)
    assert not torch.equal(made(seeing, depth=None), made(seeing))
    # What was seen can be given again.
    torch.testing.assert_close(made(seeing, depth=seen), made(seeing, depth=None), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_half_precision_that_fails_is_done_again(seeing, network, caplog):
    """The guard looks at the depth network too."""
    failing = iter([float("inf")])
    original = network.depth
    network.depth = lambda images: original(images) * next(failing, 1.0)
    try:
        settings = QUICK | {"dtype": torch.bfloat16}
        (batch,) = make_images(seeing, Depth2Img, init_img=IMAGE, prompts=["a"], seed=1, **settings)
    finally:
        del network.depth
    assert batch.computed_in["depth network"].startswith("float32") and "the depth" in caplog.text


@pytest.mark.parametrize("size, shape", [(None, (40, 56)), ((80, 112), (80, 112)), ((41, 57), (41, 57))])
def test_a_map_alone_makes_pictures_of_its_size_or_another(model, size, shape):
    height, width = size or (None, None)
    assert made(model, None, height=height, width=width).shape[2:] == shape
    if size == (80, 112):
        assert made(model, None, height=80).shape[2:] == made(model, None, width=112).shape[2:] == shape


def test_what_makes_no_sense_together(model):
    for options, words in [
        ({"image": None, "depth": None}, "give an image .*, a depth map"),
        ({"image": None, "strength": 0.5}, "without an image"),
        ({"image": None, "height": 40, "width": 40}, "aspect ratio"),
        ({"height": 64, "width": 64}, "for runs without"),
        ({"depth": None}, "--depth-ckpt"),
        ({"depth": np.zeros((1, 40, 56))}, "shape"),
    ]:
        with pytest.raises(InputError, match=words):
            made(model, **options)


@pytest.mark.parametrize("task", ["inpaint", "sd2", "upscale"])
def test_another_model_is_refused_in_one_line(tmp_path, task):
    other = tiny_model(tiny_config(task, tmp_path))
    for act in (lambda: made(other), lambda: load_depth_network(other, "x.pt")):
        with pytest.raises(InputError, match="no depth-to-image model"):
            act()


def test_an_outline_is_inflated_as_in_training():
    y, x = np.mgrid[:33, :41]
    alpha = np.where((x - 20) ** 2 + (y - 16) ** 2 < 144, 255, 0).astype(np.uint8)
    depth = alpha_depth(alpha)
    assert depth.shape == alpha.shape and depth[16, 20] == depth.max() == 1 and not depth[alpha == 0].any()
    assert (np.diff(depth[16, 8:21]) >= 0).all() and (depth[alpha > 0] > 0).all()
    large = alpha_depth(np.kron(alpha, np.full((25, 25), 1, np.uint8)))
    assert large.shape == (412, 512) and large.max() == 1 and large[206, 250] > 0.9 and large[0, 0] == 0
    for value, words in ((0, "transparent"), (255, "opaque")):
        with pytest.raises(InputError, match=words):
            alpha_depth(np.full((8, 8), value, np.uint8))


def published_names(network):
    """Return the weights under the names of dpt_hybrid-midas-501f0c75.pt."""
    return {name.removeprefix("model."): x.clone() for name, x in network.state_dict().items()}


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["midas.pt", "midas.safetensors", "whole.safetensors"])
def test_the_network_s_own_file_is_enough(model, network, tmp_path, kind):
    file, weights = tmp_path / kind, published_names(network)
    assert {"pretrained.model.cls_token", "scratch.layer1_rn.weight"} <= weights.keys()
    if kind == "midas.pt":
        torch.save(weights, file)
    elif kind == "midas.safetensors":
        save_file(weights, file)
    else:
        whole = {f"depth_model.{name}": x.clone() for name, x in network.state_dict().items()}
        save_file(whole | {"model.diffusion_model.out.2.bias": torch.zeros(4)}, file)
    node = {"target": "ldm.modules.midas.api.MiDaSInference", "params": {"sizes": NARROW}}
    try:
        load_depth_network(model, file, node)
        loaded = model.depth_model.state_dict()
        assert all(torch.equal(x, loaded[name]) for name, x in network.state_dict().items())
        assert not any(x.requires_grad for x in model.depth_model.parameters())
        images = made(model, depth=None)
        load_depth_network(model, file)  # in the place of what is there
        model.depth_model = network
        assert torch.equal(images, made(model, depth=None))
    finally:
        model.depth_model = None


def test_a_file_without_it_changes_nothing(model, network, tmp_path):
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "unet.safetensors")
    save_file(published_names(network), tmp_path / "narrow.safetensors")
    for name, words in (("unet", "the depth estimator"), ("narrow", "does not fit")):
        with pytest.raises(WrongModelError, match=words):
            load_depth_network(model, Path(tmp_path / f"{name}.safetensors"))
        assert model.depth_model is None
    with pytest.raises(ConfigError, match="depth network"):
        model.estimate_depth(torch.zeros(1, 3, 8, 8))
