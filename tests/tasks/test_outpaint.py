"""Outpainting: exact sizes, the picture's own bytes, no seam, windows that know what went before."""

import itertools

import numpy as np
import pytest
import torch
from requesting import make_images
from tiny_models import tiny_config
from tiny_models import tiny_model as built

from ldm.errors import InputError
from ldm.imaging.canvas import Margins, boxes, joined
from ldm.imaging.padding import Frame
from ldm.requests import Inpaint, Outpaint
from ldm.samplers import SAMPLERS
from ldm.tasks.latents import StoppedAt, read_latents, stopped_file
from ldm.tasks.outpaint import OutpaintWindow


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {task: built(tiny_config(task, folder)) for task in ("sd1", "inpaint")}


@pytest.fixture(params=["sd1", "inpaint"])
def model(request, models):
    return models[request.param]


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def make(model, image, settings=None, prompts=("a",), **options):
    settings = settings or dict(sampler="ddim", steps=2)
    return list(
        make_images(model, Outpaint, init_img=image, prompts=list(prompts), seed=5, **settings, **options)
    )


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("size", "channels", "margins", "window"),
    [
        ((37, 53), 3, Margins(11, 0, 0, 0), 64),
        ((37, 53), 4, Margins(7, 41, 13, 29), 48),
        ((1, 1), 3, Margins(5, 2, 3, 30), None),
        ((97, 20), 4, Margins(up=1), 64),
    ],
)
def test_the_size_is_exact_and_the_pictures_bytes_come_back(model, size, channels, margins, window):
    image = picture(*size, channels)
    (batch,) = make(model, image, window=window, **margins._asdict())
    (result,) = batch.to_uint8()
    assert result.shape == (*margins.canvas(*size), channels) and torch.isfinite(batch.images).all()
    inner = margins.inner(*size).part
    assert np.array_equal(result[inner], image)
    if channels == 4:
        result[inner] = 255
        assert (result[:, :, 3] == 255).all(), "what is painted is opaque"


@pytest.mark.few(1)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_in_several_windows(models, sampler):
    image = picture(40, 32)
    (batch,) = make(models["sd1"], image, dict(sampler=sampler, steps=2), right=20, down=3, window=32)
    (result,) = batch.to_uint8()
    assert result.shape == (43, 52, 3) and np.array_equal(result[:40, :32], image)


def test_one_window_is_inpainting_of_the_filled_canvas(model):
    settings = dict(sampler="euler_a", steps=4, rng="per-image")
    image = np.full((32, 64, 3), 90, np.uint8)
    how = {"left": 32, "window": 96, "strength": 0.5}
    (ours,) = make(model, image, settings, prompts="ab", n_samples=2, **how)
    mask = np.zeros((32, 96), np.float32)
    mask[:, :32] = 1
    whole = np.full((32, 96, 3), 90, np.uint8)
    (theirs,) = make_images(
        model,
        Inpaint,
        init_img=whole,
        mask=mask,
        prompts=["a", "b"],
        seed=5,
        **settings,
        strength=0.5,
        n_samples=2,
    )
    assert torch.allclose(ours.latents, theirs.latents, atol=1e-3)


@pytest.mark.few(1)
@pytest.mark.parametrize("level", [0, 90, 255])
@pytest.mark.parametrize(
    "settings", [dict(sampler="ddim", steps=4, scale=1.0), dict(sampler="dpmpp_2m_sde", steps=4)]
)
def test_no_seam_on_a_constant_picture(model, level, settings):
    """The mean step across each border, in 8-bit levels, beside the mean step within 8 pixels of it."""
    image = np.full((64, 64, 3), level, np.uint8)
    (batch,) = make(model, image, settings, left=24, right=40, down=24, window=64)
    result = batch.to_uint8()[0].astype(int)
    across, down = np.abs(np.diff(result, axis=1))[:64], np.abs(np.diff(result, axis=0))
    borders = {  # step across the border, steps within the new part
        "left": (across[:, 23], across[:, 15:23]),
        "right": (across[:, 87], across[:, 88:96]),
        "down": (down[63, 24:88], down[64:72, 24:88]),
        "left of what is down": (down[63, :24], down[64:72, :24]),  # beside what was painted before
    }
    for where, (border, within) in borders.items():
        assert border.mean() <= max(within.mean(), 0.5), where


def test_what_joins_keeps_the_detail_and_ends():
    detail = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    new = torch.zeros(64, 64, dtype=torch.bool)
    new[:, 16:] = True
    result = joined(detail + 0.5, torch.zeros(1, 3, 64, 64), new)
    assert (result[..., :16] == 0).all() and result[..., 16].abs().max() < 1e-6
    assert (result[..., 40:] > 0.2).all(), "far from the border the paint's own"
    rough, smooth = detail[..., 20:].diff(dim=-2), result[..., 20:].diff(dim=-2)
    torch.testing.assert_close(rough, smooth, atol=0.03, rtol=0)


def test_the_new_part_begins_as_the_colours_beside_it():
    new = torch.zeros(32, 48, dtype=torch.bool)
    new[:, 32:] = True
    image = torch.full((1, 3, 32, 48), 0.25)
    image[..., 32:] = float("nan")
    window = OutpaintWindow(image, new, Frame.around(32, 48, 32), 8)
    assert torch.equal(window.pixels(), torch.full((1, 3, 32, 48), 0.25))


def test_a_latent_with_any_new_pixel_is_painted():
    """Also where a strip is narrower than a latent, or the frame does not begin with the picture."""
    new = torch.zeros(32, 40, dtype=torch.bool)
    new[:, 37:] = True
    frame = Frame.around(32, 40, 32)  # 12 pixels on either side
    seen = OutpaintWindow(torch.zeros(1, 3, 32, 40), new, frame, 8).shown_mask()
    assert (seen[..., 36:] == 1).all() and (seen[..., :36] == 0).all()  # (12 + 37) // 8 * 8 - 12


@pytest.mark.slow
@pytest.mark.parametrize("rng", ["per-image", "gpu-philox"])
def test_a_picture_of_several_windows_is_the_same_alone_and_in_a_batch(model, rng):
    settings = dict(sampler="euler_a", steps=2, rng=rng, exact=True)
    how = {"right": 40, "up": 5, "window": 32}
    together = make(model, picture(32, 32), settings, prompts="abc", n_samples=2, **how)
    alone = make_images(model, Outpaint, init_img=picture(32, 32), prompts=["c"], seed=7, **settings, **how)
    assert torch.equal(together[1].images, next(alone).images) and together[1].seeds == (7,)
    alone = make_images(model, Outpaint, init_img=picture(32, 32), prompts=["b"], seed=6, **settings, **how)
    assert torch.equal(together[0].images[1:], next(alone).images)


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["reference", "per-image", "gpu-philox"])
def test_no_two_windows_begin_with_the_same_noise(models, rng):
    begun = []

    def track(steps, total):
        begun.append(None)
        for step in steps:
            begun[-1] = begun[-1] if begun[-1] is not None else step.x_t
            yield step

    image = np.full((32, 32, 3), 128, np.uint8)
    make(models["sd1"], image, dict(sampler="ddim", steps=2, rng=rng), right=48, window=32, track=track)
    assert len(begun) == 3
    for one, other in itertools.combinations(begun, 2):
        assert not torch.allclose(one, other, atol=1e-2)


@pytest.mark.few(1)
@pytest.mark.parametrize("rng", ["reference", "per-image"])
@pytest.mark.parametrize("stop", [2, 8, 9, 17])
def test_a_run_stopped_in_any_window_goes_on_exactly(model, tmp_path, rng, stop):
    """Four windows of three steps: in the first, in the third, after its last step, in the second batch."""
    image = picture(32, 32)
    settings = dict(sampler="dpmpp_2m_sde", steps=3, rng=rng)
    how = {"right": 20, "left": 20, "window": 32}
    assert len(boxes(32, 32, Margins(20, 20), 32)) == 4
    how |= {"prompts": "abc", "n_samples": 2}
    whole = make(model, image, settings, **how)
    taken, asked = itertools.count(1), []

    def track(steps, total):
        if asked:
            return
        for step in steps:
            yield step
            if next(taken) == stop:
                asked.append(True)
                return

    done = []
    with pytest.raises(StoppedAt) as stopped:
        done.extend(outpaint_slowly(model, image, settings, done, track=track, **how))
    file = tmp_path / "stopped.safetensors"
    file.write_bytes(stopped_file(stopped.value.position, {}))
    rest = make(model, image, settings, resume=read_latents(file).position, **how)
    assert len(done) + len(rest) == len(whole) == 2
    for ours, theirs in zip([*done, *rest], whole, strict=True):
        assert torch.equal(ours.images, theirs.images)


def outpaint_slowly(model, image, settings, done, prompts, **how):
    """Append each batch to `done` as it comes."""
    for batch in make_images(
        model, Outpaint, init_img=image, prompts=list(prompts), seed=5, **settings, **how
    ):
        done.append(batch)
    return []


def test_going_on_needs_the_canvas(models, tmp_path):
    model, image = models["sd1"], picture(32, 32)
    with pytest.raises(StoppedAt) as stopped:
        make(model, image, right=40, window=32, track=lambda steps, total: itertools.islice(steps, 1))
    position = stopped.value.position
    for made in ({}, {"canvas": torch.zeros(1, 3, 9, 9)}):
        file = tmp_path / "stopped.safetensors"
        file.write_bytes(stopped_file(position.__class__(**{**vars(position), "made": made}), {}))
        with pytest.raises(InputError, match="canvas that was saved does not fit"):
            make(model, image, right=40, window=32, resume=read_latents(file).position)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing to add"),
        ({"left": -1, "right": 8}, "left: got -1"),
        ({"down": 16_384}, "at most 16384 pixels per side"),
        ({"right": 8, "strength": 1.5}, "strength: got 1.5"),
        ({"right": 8, "window": 8}, "window: got 8"),
    ],
)
def test_what_cannot_be_is_refused_at_once(models, options, says):
    with pytest.raises(InputError, match=says):
        make(models["sd1"], picture(8, 8), **options)


def test_models_of_other_tasks_are_refused(tmp_path):
    with pytest.raises(InputError, match="is for another task|needs more than a prompt"):
        make(built(tiny_config("depth", tmp_path)), picture(8, 8), left=8)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_dark_rim_is_kept_and_not_continued(model, depth):
    settings = dict(sampler="ddim", steps=2, scale=1.0)
    clean = np.full((48, 40, 3), 180, np.uint8)
    rimmed = clean.copy()
    rimmed[:, -depth:] = 120
    results = []
    for image in (clean, rimmed):
        (batch,) = make(model, image, settings, right=24, window=64)
        results.append(batch.to_uint8()[0].astype(int))
    assert np.array_equal(results[1][:, :40], rimmed)
    assert np.abs(results[0][:, 40:] - results[1][:, 40:]).max() <= 1
