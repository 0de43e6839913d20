"""The conditioning as one value: taken apart, joined, cut to tiles."""

import pytest
import torch

from ldm.diffusion.cond import Cond, Control, control_scales, total_residuals, within
from ldm.errors import ConfigError, InputError

T = torch.tensor([10, 900])


def made(seed: int = 0, count: int = 2, **more) -> Cond:
    """Return a conditioning with every part; two controls with networks that give sums of their inputs."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(count, *shape, generator=generator)

    controls = tuple(Control(network, randn(3, 32, 16), 0.5, **more) for network in (plus, times))
    return Cond(randn(5, 8), randn(3, 4, 2), randn(6), controls)


def plus(x_t, hint, t, context):
    pooled = hint.mean((1, 2, 3)).view(-1, 1, 1, 1)
    return [x_t + pooled, x_t - pooled, x_t + context.mean((1, 2)).view(-1, 1, 1, 1)]


def times(x_t, hint, t, context):
    return [2 * residual for residual in plus(x_t, hint, t, context)]


def assert_same(a: Cond, b: Cond):
    assert a.controls == b.controls and a.tensors().keys() == b.tensors().keys()
    assert all(torch.equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


def test_taking_apart_and_joining_gives_the_whole():
    cond = made()
    assert cond.count() == 2 and Cond().count() is None and cond.take([1]).count() == 1
    assert list(cond.tensors()) == ["context", "concat", "label", "hint 1", "hint 2"]
    assert_same(cond.take(slice(0, 1)).join(cond.take([1])), cond)
    assert_same(cond.take([1, 0]).take([1, 0]), cond)
    assert_same(Cond().join(Cond()), Cond())
    assert cond.map(lambda x: x.double()).controls[1].hint.dtype == torch.float64


def test_other_controls_cannot_be_joined_and_other_shapes_are_errors():
    cond = made()
    one = Cond(cond.context, cond.concat, cond.label, cond.controls[:1])
    assert cond.join(one) is None
    assert cond.join(made(interval=(0.0, 0.5))) is None
    for other in (Cond(cond.context), Cond(cond.context, cond.concat[..., :1], cond.label)):
        with pytest.raises(InputError, match=r"unconditional part is context \(2, 5, 8\) and .*, the cond"):
            Cond(cond.context, cond.concat, cond.label).join(other)
    with pytest.raises(InputError, match="context 2, concat 1"):
        Cond(cond.context, cond.concat[:1]).count()


def test_a_tile_gets_its_own_part_of_the_channels_and_of_the_hints():
    cond = made()
    tile = cond.cropped((4, 2), slice(1, 3), slice(0, 1))
    assert torch.equal(tile.concat, cond.concat[..., 1:3, 0:1])
    assert torch.equal(tile.controls[1].hint, cond.controls[1].hint[..., 8:24, 0:8])
    assert tile.context is cond.context and tile.label is cond.label
    with pytest.raises(InputError, match="cannot be tiled"):
        cond.cropped((4, 4), slice(0, 2), slice(0, 2))
    with pytest.raises(InputError, match="hint of 32x16"):
        Cond(controls=cond.controls).cropped((5, 2), slice(0, 2), slice(0, 2))


def test_the_context_can_be_cut():
    cond = made()
    assert torch.equal(cond.with_context_length(3).context, cond.context[:, :3])
    assert Cond().with_context_length(3).context is None


def test_residuals_add_up_and_are_scaled():
    cond, x_t = made(), torch.randn(2, 4, 4, 2)
    first, second = (plus(x_t, c.hint, T, cond.context) for c in cond.controls)
    total = total_residuals(x_t, T, cond, 1000)
    for got, a, b in zip(total, first, second, strict=True):
        torch.testing.assert_close(got, 0.5 * a + b)
    assert total_residuals(x_t, T, Cond(cond.context), 1000) is None


def test_one_scale_for_each_residual():
    control = Control(plus, torch.ones(2, 3, 8, 8), (0.0, 1.0, 2.0, 9.0))
    x_t, context = torch.randn(2, 4, 4, 2), torch.randn(2, 5, 8)
    got = control.residuals(x_t, T, context, 1000)
    for residual, plain, scale in zip(got, plus(x_t, control.hint, T, context), (0, 1, 2), strict=True):
        torch.testing.assert_close(residual, scale * plain)
    with pytest.raises(ConfigError, match="2 entries; expected 3"):
        Control(plus, control.hint, (1.0, 1.0)).residuals(x_t, T, context, 1000)


def test_in_guess_mode_shallow_residuals_are_weaker():
    assert control_scales(0.7, True, 13) == pytest.approx([0.7 * 0.825 ** (12 - i) for i in range(13)])
    assert control_scales(0.7, True, 3) == pytest.approx([0.7 * 0.825 ** (12 - i) for i in range(3)])
    assert control_scales(0.7, False, 3) == (0.7,) * 3
    assert Control(plus, torch.ones(1), 0.7, guess=True).scales(3) == control_scales(0.7, True, 3)


def test_the_mean_over_the_image_can_take_the_place_of_residuals():
    x_t, context, hint = torch.randn(2, 4, 4, 2), torch.randn(2, 5, 8), torch.ones(2, 3, 8, 8)
    whole, pooled = (Control(plus, hint, pooled=p).residuals(x_t, T, context, 1000) for p in (False, True))
    for a, b in zip(whole, pooled, strict=True):
        torch.testing.assert_close(a.mean((2, 3), keepdim=True), b)


def test_outside_its_interval_a_control_is_not_evaluated():
    calls = []

    def counted(*args):
        calls.append(len(args[0]))
        return plus(*args)

    control = Control(counted, torch.rand(2, 3, 8, 8), interval=(0.5, 1.0))
    x_t, context = torch.randn(2, 4, 4, 2), torch.randn(2, 5, 8)
    assert control.residuals(x_t, torch.tensor([0, 499]), context, 1000) is None and not calls
    late = torch.tensor([500, 999])
    inside = control.residuals(x_t, late, context, 1000)
    assert all(map(torch.equal, inside, plus(x_t, control.hint, late, context)))
    mixed = control.residuals(x_t, T, context, 1000)  # times 10 and 900
    for a, b in zip(mixed, plus(x_t, control.hint, T, context), strict=True):
        assert torch.equal(a[0], torch.zeros_like(a[0])) and torch.equal(a[1], b[1])


def test_the_ends_belong_to_an_interval():
    edges = torch.tensor([249, 250, 749, 750])
    assert within((0.25, 0.75), edges, 1000).tolist() == [False, True, True, False]
    assert within((0.0, 1.0), torch.tensor([0.0, 999.0]), 1000).all()


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, float("nan"))])
def test_an_impossible_interval_is_refused(interval):
    with pytest.raises(InputError, match="control interval"):
        Control(plus, torch.ones(1), interval=interval)
