"""Every task at odd and prime sizes: exactly the size, every value finite, and no seam.

Seams are looked for with a model that makes no error of its own: its autoencoder keeps a constant picture
exactly, and its UNet knows that this picture is wanted. What differs from that colour is then ours: of
padding, cropping, tiling, pasting. Where a task keeps a part of the picture, that part is byte for byte the
given one.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as profile
from hypothesis import strategies as st
from requesting import make_images
from tiny_models import tiny_config, tiny_model

from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.requests import Depth2Img, Img2Img, Inpaint, Outpaint, Sample, Txt2Img, Unclip, Upscale
from ldm.tasks.batch import Batch

QUICK = {"seed": 3, "sampler": "euler", "steps": 2, "scale": 1.0}
COLOUR = (230, 90, 30)
FEW = profile(
    max_examples=4, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # sizes are small as they are
)  # fmt: skip
SIDES = st.sampled_from([1, 2, 3, 5, 7, 13, 17, 29, 31, 33, 37, 61, 67])


class Task(NamedTuple):
    """A task as a row: the kind of model, how it is called, and the size that comes out."""

    kind: str
    call: Callable
    size: Callable[[int, int], tuple[int, int]] = lambda height, width: (height, width)
    kept: Callable = lambda image, picture: (None, None)  # parts of both that are to be equal


def half(image: np.ndarray) -> np.ndarray:
    """Return a mask of the right half of a picture, at least a column, with a hole of what stays."""
    mask = np.zeros(image.shape[:2], np.float32)
    mask[:, image.shape[1] // 2 :] = 1
    mask[: image.shape[0] // 3, -2:-1] = 0
    return mask


def outside(image: np.ndarray, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    stays = half(image) == 0
    return image[stays], picture[stays]


def middle(image: np.ndarray, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return image, picture[5 : 5 + image.shape[0], 3 : 3 + image.shape[1]]


def ramp(image: np.ndarray) -> np.ndarray:
    return np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1])).astype(np.float32)


def size_of(image: np.ndarray) -> dict:
    return dict(zip(("height", "width"), image.shape, strict=False))


def request(cls: type, given: Callable = lambda x: {}) -> Callable:
    """Return what makes the images of a request for an image x; `given` are its options of x."""
    return lambda model, x: make_images(model, cls, **{"prompts": ["a"]} | given(x) | QUICK)


def image_of(x: np.ndarray, **more) -> dict:
    return {"init_img": x, **more}


def masked(x: np.ndarray, **more) -> dict:
    return image_of(x, mask=half(x), **more)


TASKS = {
    "txt2img": Task("sd2", request(Txt2Img, size_of)),
    "sample": Task("sd2", request(Sample, lambda x: {"prompts": [""], **size_of(x)})),
    "img2img": Task("sd2", request(Img2Img, lambda x: image_of(x, strength=1.0))),
    "inpaint": Task("inpaint", request(Inpaint, masked), kept=outside),
    "inpaint, plain model": Task("sd2", request(Inpaint, masked), kept=outside),
    "inpaint, only masked": Task(
        "inpaint", request(Inpaint, lambda x: masked(x, only_masked=3)), kept=outside
    ),
    "outpaint": Task(
        "inpaint",
        request(Outpaint, lambda x: image_of(x, left=3, up=5, right=17)),
        lambda h, w: (h + 5, w + 20),
        middle,
    ),
    "outpaint, plain model": Task(
        "sd2",
        request(Outpaint, lambda x: image_of(x, left=3, up=5, down=1)),
        lambda h, w: (h + 6, w + 3),
        middle,
    ),
    "depth2img": Task("depth", request(Depth2Img, lambda x: image_of(x, depth=ramp(x)))),
    "upscale": Task("upscale", request(Upscale, image_of), lambda h, w: (8 * h, 8 * w)),
    "upscale, tiled": Task(
        "upscale",
        request(Upscale, lambda x: image_of(x, tile=16, overlap=4, faithful="off")),
        lambda h, w: (8 * h, 8 * w),
    ),
    "unclip": Task("unclip-h", request(Unclip, lambda x: {"init_img": [x], **size_of(x)})),
}
"""The tiny upscaler's decoder enlarges 8 times, the published one 4."""


@lru_cache
def model_of(kind: str):
    with TemporaryDirectory() as folder:
        return tiny_model(tiny_config(kind, Path(folder)))


def only(batches) -> Batch:
    (batch,) = batches
    return batch


@pytest.mark.few(1)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
@FEW
@given(SIDES, SIDES, st.integers(0, 99))
@example(1, 1, 0)
def test_any_size_comes_out_exactly_and_finite(task, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    batch = only(task.call(model_of(task.kind), image))
    size = task.size(height, width)
    assert batch.images.shape == (1, 3, *size) and torch.isfinite(batch.images).all()
    (picture,) = batch.to_uint8()
    assert picture.shape == (*size, 3)
    assert np.array_equal(*task.kept(image, picture))


@pytest.fixture
def exact(monkeypatch):
    """Return what makes any model exact for pictures of COLOUR; what it encodes is put into `seen`."""

    def exactly(model, seen):
        factor, pixel = model.downsampling_factor, torch.tensor([*COLOUR, 127.5]) / 127.5 - 1
        x_0 = model.scale_factor * pixel.view(1, 4, 1, 1)

        def encode(images):
            seen.append(images)
            mean = F.avg_pool2d(torch.cat([images, images[:, :1] * 0], dim=1), factor)
            return DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, -30)], dim=1))

        def apply_model(x_t, t, cond):
            alpha, sigma = (value.view(-1, 1, 1, 1) for value in model.schedule.alpha_sigma(t, x_t))
            eps = (x_t - alpha * x_0) / sigma
            return alpha * eps - sigma * x_0 if model.parameterization == "v" else eps

        monkeypatch.setattr(model, "encode_first_stage", encode)
        monkeypatch.setattr(model, "apply_model", apply_model)
        monkeypatch.setattr(
            model, "decode_first_stage",
            lambda z: F.interpolate(z / model.scale_factor, scale_factor=factor)[:, :3],
        )  # fmt: skip
        return model

    return exactly


@pytest.mark.few(2)
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
@FEW
@given(height=SIDES, width=SIDES)
def test_a_constant_picture_shows_no_seam(exact, task, height, width):
    """Within 1 of 255, as to 8 bits is by truncation. Nor does the padding of what is encoded show one."""
    image, seen = np.full((height, width, 3), COLOUR, np.uint8), []
    (picture,) = only(task.call(exact(model_of(task.kind), seen), image)).to_uint8()
    assert picture.shape == (*task.size(height, width), 3)
    assert np.abs(picture.astype(int) - COLOUR).max() <= 1
    if task.call in (TASKS["img2img"].call, TASKS["depth2img"].call):
        assert seen and all(torch.equal(x, x[..., :1, :1].expand_as(x)) for x in seen)
