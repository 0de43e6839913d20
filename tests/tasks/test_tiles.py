"""Tiles at every step: they cover once, agree with the whole where they can, and blend without seams."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_config, tiny_model

from ldm.diffusion.cond import Cond
from ldm.errors import InputError
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
    with pytest.raises(InputError, match="tile is 31; expected 32 or more"):
        tiling_of(31, None, 8)
    with pytest.raises(InputError, match="overlap is 33; expected 0 to 32"):
        tiling_of(64, 33, 8)
    with pytest.raises(InputError, match="cannot be tiled"):
        network = tiled(pointwise, Tiling(16, 4), 4)
        network(torch.randn(1, 4, 32, 32), torch.zeros(1), Cond(concat=torch.randn(1, 3, 16, 16)))
