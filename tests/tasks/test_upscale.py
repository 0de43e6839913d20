"""Four times larger: any size, the reference's picture, the same picture in any batch and after a stop."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from requesting import make_images
from tiny_models import tiny_config, tiny_model

from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.requests import Upscale
from ldm.tasks.latents import StoppedAt
from ldm.tasks.tiles import spans

QUICK = dict(sampler="ddim", steps=2, scale=3.0)
ALONE = dict(sampler="euler_a", steps=3, scale=3.0, rng="per-image", exact=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return an upscaler with random weights; its decoder enlarges by `factor`."""
    return tiny_model(tiny_config("upscale", tmp_path_factory.mktemp("upscale")))


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def run(model, image, prompts=("a",), **options):
    options = {"seed": 3, "settings": QUICK} | options
    return list(make_images(model, Upscale, init_img=image, prompts=list(prompts), **options))


@pytest.mark.few(2)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 5), (8, 8), (17, 31)])
def test_any_size_comes_out_exactly_enlarged(model, size):
    (batch,) = run(model, picture(*size))
    scale = model.downsampling_factor
    assert batch.images.shape == (1, 3, scale * size[0], scale * size[1])
    assert batch.images.isfinite().all()
    assert batch.to_uint8()[0].shape == (scale * size[0], scale * size[1], 3)


def test_the_picture_stands_where_the_small_one_stood(model):
    """A frame of odd margins is cropped at the enlarged margin: padding by hand gives the same picture."""
    image = picture(5, 7)
    mirrored = np.pad(image, ((1, 2), (0, 1), (0, 0)), "reflect")
    inner = model.model.diffusion_model.downsampling_factor
    assert mirrored.shape[0] % inner == mirrored.shape[1] % inner == 0
    scale = model.downsampling_factor
    (mine,), (whole,) = run(model, image), run(model, mirrored)
    assert torch.equal(mine.images, whole.images[..., scale : scale * 6, : scale * 7])


def test_a_picture_does_not_depend_on_its_batch(model):
    image = picture(6, 10)
    together = run(model, image, "abc", n_samples=2, settings=ALONE)
    images = torch.cat([batch.images for batch in together])
    for k, prompt in enumerate("abc"):
        (alone,) = run(model, image, prompt, seed=3 + k, settings=ALONE)
        assert torch.equal(images[k], alone.images[0])
    assert not torch.allclose(images[0], images[1])


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["reference", "per-image"])
@pytest.mark.parametrize("stop", [2, 5])
def test_going_on_is_exact(model, rng, stop):
    """In the first batch, and in the short second."""
    settings = dict(sampler="euler_a", steps=3, scale=3.0, rng=rng)
    options = {"seed": 3, "n_samples": 2, "settings": settings}
    image, left = picture(6, 10), itertools.count(stop - 1, -1)

    def track(steps, total):
        for step in steps:
            yield step
            if next(left) == 0:
                return

    whole = run(model, image, "abc", **options)
    made, batches = (
        [],
        make_images(model, Upscale, init_img=image, prompts=list("abc"), track=track, **options),
    )
    with pytest.raises(StoppedAt) as stopped:
        made.extend(iter(lambda: next(batches), None))
    made += run(model, image, "abc", resume=stopped.value.position, **options)
    for mine, its in zip(made, whole, strict=True):
        assert torch.equal(mine.images, its.images) and mine.prompts == its.prompts


def test_the_noise_level_matters_and_is_checked(model):
    image = picture(8, 8)
    (low,), (default,), (usual,) = (run(model, image, noise_level=n) for n in (0, None, 20))
    assert torch.equal(default.images, usual.images) and not torch.allclose(low.images, usual.images)
    for level in (-1, 351):
        with pytest.raises(InputError, match=f"noise.level.*{level}.*expected.*0"):
            run(model, image, noise_level=level)


def test_a_faithful_picture_shrinks_to_the_one_it_is_of(model):
    small = np.asarray(Image.fromarray(picture(2, 3)).resize((12, 8), Image.Resampling.BICUBIC))
    errors = []
    for is_faithful in (False, True):
        (batch,) = run(model, small, faithful="on" if is_faithful else "off")
        shrunk = torch.nn.functional.interpolate(batch.images, (8, 12), mode="bicubic", antialias=True)
        errors.append((shrunk - from_uint8(small)).square().mean().sqrt())
    assert errors[0] > 0.1 and errors[1] < 0.05


def test_start_noise_may_be_given(model):
    image, noise = picture(8, 8), torch.randn(1, 4, 8, 8)
    (mine,), (again,) = (run(model, image, latents=noise, seed=3) for _ in range(2))
    assert torch.equal(mine.images, again.images)
    assert not torch.allclose(mine.images, run(model, image)[0].images)


def test_other_models_are_refused(tmp_path):
    other = tiny_model(tiny_config("sd2", tmp_path))
    with pytest.raises(InputError, match="this model is a LatentDiffusion; expected LatentUpscaleDiffusion"):
        make_images(other, Upscale, init_img=picture(8, 8), prompts=["a"], seed=3)


SIDE, TILE = 56, 40
DEMO = Path(__file__).parents[2] / "configs" / "demo" / "emoji_upscale.yaml"


@pytest.fixture(scope="module")
def demo():
    from ldm import load_model

    return load_model(DEMO, DEMO.with_suffix(".safetensors"), device="cpu", dtype="float32")


def sprite() -> np.ndarray:
    drawn = Image.new("RGB", (4 * SIDE, 4 * SIDE), (90, 170, 250))
    pen, u = ImageDraw.Draw(drawn), SIDE // 7
    pen.ellipse((4 * u, 4 * u, 24 * u, 24 * u), fill=(250, 200, 40), outline=(120, 70, 0), width=u)
    for x in (10 * u, 16 * u):
        pen.ellipse((x, 10 * u, x + 2 * u, 13 * u), fill=(60, 30, 0))
    pen.arc((9 * u, 12 * u, 19 * u, 20 * u), 20, 160, fill=(60, 30, 0), width=u)
    return np.asarray(drawn.resize((SIDE, SIDE), Image.BICUBIC))


def slopes() -> np.ndarray:
    y, x = np.mgrid[0:SIDE, 0:SIDE] * 255 // SIDE
    return np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("make", [sprite, slopes])
@pytest.mark.parametrize(
    ("faithful", "most_shift", "least_psnr"), [("on", 0.1, 45), ("off", 5, 28)], ids=["faithful", "raw"]
)
def test_tiles_keep_the_colours_and_have_no_seams(demo, make, faithful, most_shift, least_psnr):
    """On a picture that fits both ways, as tiles are used, and without what corrects their colours."""
    options = {"seed": 1, "settings": dict(sampler="ddim", steps=3, scale=1.0), "faithful": faithful}
    whole, tiled = (
        next(make_images(demo, Upscale, init_img=make(), prompts=["a cat"], **tiles, **options)).images
        for tiles in ({}, {"tile": TILE, "overlap": 8})
    )
    shift = 127.5 * (tiled - whole).mean((0, 2, 3)).abs().max()
    assert shift < most_shift, "colours, of 255"
    psnr = 10 * torch.log10(4 / (tiled - whole).square().mean())
    assert psnr > least_psnr
    scale, multiple = demo.downsampling_factor, demo.model.diffusion_model.downsampling_factor
    parts = spans(SIDE, TILE, 8, multiple)
    borders = [scale * part.start for part in parts[1:]] + [scale * part.stop for part in parts[:-1]]
    for dim in (2, 3):
        steps = (tiled - whole).diff(dim=dim).abs().mean((0, 1, 5 - dim))  # of the error, across each row
        usual = steps.quantile(0.95)  # it has edges where the picture has them
        assert all(steps[border - 1] < 1.5 * usual for border in borders)
