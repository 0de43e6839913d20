"""Random numbers are drawn in the order that was recorded from the reference scripts."""

import numpy as np
import pytest
import torch

from ldm.tasks.draws import make_draws
from ldm.tasks.img2img import img2img
from ldm.tasks.sampling import Settings
from ldm.tasks.txt2img import txt2img

STEPS = 4


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
    settings = Settings(sampler, STEPS)
    batches = txt2img(
        tiny_model,
        ["a", "b"],
        seed=42,
        height=16,
        width=32,
        batch_size=2,
        n_iter=2,
        settings=settings,
        fixed_code=fixed_code,
    )
    assert len(list(batches)) == 2
    assert record == [("device", (2, 4, 2, 4))] * (before + 2 * per_iteration)


def test_img2img(tiny_model, record):
    image = np.zeros((16, 32, 3), np.uint8)
    batches = img2img(
        tiny_model,
        image,
        ["a", "b"],
        seed=42,
        strength=0.8,
        batch_size=2,
        n_iter=2,
        settings=Settings("ddim", 5),
    )
    assert len(list(batches)) == 2
    assert record == [("cpu", (2, 4, 2, 4))] + [("device", (2, 4, 2, 4))] * (2 * (1 + 4))


def test_on_the_cpu_both_generators_are_one_stream():
    noise = make_draws("reference", 7, torch.device("cpu"), 2, 2).batch(0, 2)
    got = torch.stack([noise.normal("posterior", 4, 8, 8), noise.normal("start", 4, 8, 8)])
    torch.manual_seed(7)
    assert torch.equal(got, torch.stack([torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)]))


def test_the_global_generator_is_left_alone(tiny_model):
    before = torch.get_rng_state()
    list(txt2img(tiny_model, ["a"], seed=1, height=16, width=16, settings=Settings("ddim", 2)))
    assert torch.equal(torch.get_rng_state(), before)
