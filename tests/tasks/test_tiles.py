"""Tiles at every step: they cover once, agree with the whole where they can, and blend without seams."""

from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from requesting import make_images
from tiny_models import tiny_config, tiny_model

from ldm.diffusion.cond import Cond
from ldm.errors import InputError
from ldm.requests import Depth2Img, Img2Img, Inpaint, Outpaint, Sample, Txt2Img, Unclip
from ldm.tasks.tiles import Tiling, spans, tiled, tiling_of, weights

units = st.integers(1, 40)


@settings(max_examples=50, deadline=None)
@given(units, st.integers(2, 12), st.integers(0, 6), st.sampled_from([1, 4, 8]))
def test_tiles_cover_evenly_and_their_weights_add_up_to_one(side, tile, overlap, multiple):
    side, tile, overlap = side * multiple, tile * multiple, min(overlap, tile // 2) * multiple
    parts = spans(side, tile, overlap, multiple)
    assert parts[0].start == 0 and parts[-1].stop == side
    assert all(part.start % multiple == 0 and part.stop - part.start == min(tile, side) for part in parts)
    assert all(a.stop - b.start >= overlap for a, b in zip(parts, parts[1:], strict=False))
    total = torch.zeros(side, dtype=torch.float64)
    for part, w in zip(parts, weights(parts), strict=True):
        assert bool((w > 0).all())
        total[part] += w
    torch.testing.assert_close(total, torch.ones_like(total))


def pointwise(x_t, t, cond):
    """A network that looks at every pixel alone: tiles of it are exact."""
    return torch.sin(x_t + cond.concat.sum(1, keepdim=True) + t[:, None, None, None])


@pytest.mark.parametrize("sides", [(40, 24), (16, 72), (16, 16)])
@pytest.mark.parametrize("overlap", [0, 4, 8])
def test_of_a_network_without_neighbours_tiles_give_the_whole(sides, overlap):
    x_t, small, t = torch.randn(2, 4, *sides), torch.randn(2, 3, *sides), torch.tensor([1.0, 2.0])
    cond = Cond(torch.randn(2, 5, 8), small, torch.tensor([20, 20]))
    network = tiled(pointwise, Tiling(16, overlap, one_by_one=True), 4)
    torch.testing.assert_close(network(x_t, t, cond), pointwise(x_t, t, cond))


def test_every_call_sees_one_sample_and_no_more_than_a_tile():
    seen = []

    def network(x_t, t, cond):
        seen.append((tuple(x_t.shape), tuple(cond.concat.shape), len(cond.context), len(t)))
        return x_t

    x_t = torch.randn(2, 4, 40, 20)
    cond = Cond(torch.randn(2, 5, 8), torch.randn(2, 3, 40, 20))
    out = tiled(network, Tiling(16, 4, one_by_one=True), 4)(x_t, torch.zeros(2), cond)
    torch.testing.assert_close(out, x_t)
    assert set(seen) == {((1, 4, 16, 16), (1, 3, 16, 16), 1, 1)}
    assert len(seen) == 2 * 3 * 2


def test_a_unet_on_tiles_is_near_the_whole_and_has_no_seams(tmp_path):
    """Beyond the reach of its borders a tile says what the whole says; the blend has no edges of its own."""
    model = tiny_model(tiny_config("upscale", tmp_path))
    multiple = model.model.diffusion_model.downsampling_factor
    x_t, small, t = torch.randn(1, 4, 96, 48), torch.rand(1, 3, 96, 48), torch.tensor([500])
    cond = Cond(torch.randn(1, 6, 32), small, torch.tensor([20]))
    with torch.no_grad():
        whole = model.apply_model(x_t, t, cond)
        soft = tiled(model.apply_model, Tiling(48, 16), multiple)(x_t, t, cond)
        hard = tiled(model.apply_model, Tiling(48, 0), multiple)(x_t, t, cond)

    def jump(y, row):
        """How much larger the step across a row of the error is than other steps."""
        steps = (y - whole).diff(dim=2).abs().mean((0, 1, 3))
        return float(steps[row - 1] / steps.median())

    assert jump(hard, 48) > 2, "tiles side by side have a seam"
    edges = [part.start for part in spans(96, 48, 16, multiple)][1:]
    assert all(jump(soft, edge) < 1.5 for edge in edges)
    assert (soft - whole).abs().mean() < (hard - whole).abs().mean()


def test_a_network_whose_whole_fits_is_not_changed():
    assert tiled(pointwise, Tiling(16, 4), 4) is not None
    x_t, cond = torch.randn(1, 4, 16, 8), Cond(concat=torch.randn(1, 3, 16, 8))
    t = torch.zeros(1)
    assert torch.equal(tiled(pointwise, Tiling(16, 4), 4)(x_t, t, cond), pointwise(x_t, t, cond))


def test_sizes_are_rounded_up_to_what_the_network_takes_and_checked():
    assert tiling_of(50, None, 8) == Tiling(56, 16, one_by_one=True, decoder_tile=56)
    assert tiling_of(64, 17, 8).overlap == 24
    with pytest.raises(InputError, match="--tile 31: expected 32 or more"):
        tiling_of(31, None, 8)
    with pytest.raises(InputError, match="--overlap 33: expected 0 to 32"):
        tiling_of(64, 33, 8)
    with pytest.raises(InputError, match="cannot be tiled"):
        network = tiled(pointwise, Tiling(16, 4), 4)
        network(torch.randn(1, 4, 32, 32), torch.zeros(1), Cond(concat=torch.randn(1, 3, 16, 16)))


IMAGE = np.random.default_rng(0).integers(0, 256, (96, 160, 3), np.uint8)
MASK = np.zeros((96, 160), np.float32)
MASK[20:70, 30:140] = 1
TASKS = MappingProxyType(
    {
        Txt2Img: ("sd2", {"height": 96, "width": 160}),
        Img2Img: ("sd2", {"init_img": IMAGE}),
        Inpaint: ("inpaint", {"init_img": IMAGE, "mask": MASK, "raw": True}),
        Outpaint: ("inpaint", {"init_img": IMAGE[:, :128], "right": 32, "window": 160}),
        Depth2Img: ("depth", {"init_img": IMAGE, "depth": MASK}),
        Unclip: ("unclip-l", {"init_img": [IMAGE], "height": 96, "width": 160}),
        Sample: ("sd2", {"prompts": ["", ""], "height": 96, "width": 160, "scale": 1.0}),
    }
)


@pytest.mark.few(1)
@pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.__name__)
def test_every_task_can_be_run_in_tiles(cls, tmp_path, monkeypatch):
    """The UNet sees a sample and a tile at once, with its own part of what is joined to it."""
    kind, options = TASKS[cls]
    model, seen = tiny_model(tiny_config(kind, tmp_path)), []
    original = model.apply_model

    def apply_model(x_t, t, cond):
        seen.append((tuple(x_t.shape), None if cond.concat is None else tuple(cond.concat.shape[-2:])))
        return original(x_t, t, cond)

    monkeypatch.setattr(model, "apply_model", apply_model)
    options = {"prompts": ["a", "b"], "n_samples": 2, "steps": 2, "seed": 1, "rng": "per-image"} | options
    (whole,) = make_images(model, cls, **options)
    assert {shape for shape, _ in seen} <= {(4, 4, 12, 20), (2, 4, 12, 20)}
    seen.clear()
    (tiled_,) = make_images(model, cls, tile=128, overlap=32, **options)
    sides = {None} if kind in ("sd2", "unclip-l") else {(12, 16)}
    assert {shape for shape, _ in seen} - {(1, 4, 16, 16)} == {(1, 4, 12, 16)}  # a probe comes first
    assert {side for shape, side in seen if shape[-2:] == (12, 16)} == sides
    assert tiled_.images.shape == whole.images.shape and tiled_.images.isfinite().all()
    assert not torch.equal(tiled_.latents, whole.latents)


def test_tiles_of_the_decoder_and_one_sample_at_a_time_change_no_task(tmp_path, monkeypatch):
    """They are what a limit of memory asks for first; only kernels may round differently."""
    model = tiny_model(tiny_config("sd2", tmp_path))
    options = {"prompts": ["a", "b"], "n_samples": 2, "steps": 2, "seed": 1, "height": 96, "width": 160}
    (whole,) = make_images(model, Txt2Img, **options)
    planned = Tiling(one_by_one=True, decoder_tile=8)
    monkeypatch.setattr("ldm.tasks.run.tiling_for", lambda *_: planned)
    (sliced,) = make_images(model, Txt2Img, **options)
    torch.testing.assert_close(sliced.latents, whole.latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sliced.images, whole.images, atol=2e-4, rtol=0)


def test_tiles_are_counted_in_pixels_of_the_image():
    assert tiling_of(200, 40, 4, unit=8) == Tiling(28, 8, one_by_one=True, decoder_tile=28)
    with pytest.raises(InputError, match="--tile 96: expected 128 or more"):
        tiling_of(96, None, 4, unit=8)
    with pytest.raises(InputError, match="--overlap 72: expected 0 to 64"):
        tiling_of(128, 72, 4, unit=8)
