"""What is known is spread smoothly, and takes a border away."""

import pytest
import torch

from ldm.imaging.pull_push import match_border, pull_push


def known_but(height: int, width: int, top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    known = torch.ones(1, 1, height, width)
    known[..., top:bottom, left:right] = 0
    return known


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (31, 2), (37, 53), (64, 64)])
def test_a_constant_stays_that_constant(size):
    known = (torch.rand(1, 1, *size) < 0.1).float()
    known[..., 0, 0] = 1
    values = torch.where(known > 0, 0.3, float("nan")).expand(2, 3, -1, -1)  # what is unknown may be anything
    torch.testing.assert_close(pull_push(values, known), torch.full((2, 3, *size), 0.3))


def test_known_values_stay_and_others_lie_between_them_smoothly():
    values = torch.linspace(-1, 1, 48).expand(1, 1, 40, 48).clone()
    known = known_but(40, 48, 10, 12, 30, 36)
    result = pull_push(values, known)
    assert torch.equal(result[known > 0], values[known > 0])
    assert result.abs().max() <= 1
    assert (result - values).abs().max() < 0.25 and result.diff(dim=-1).abs().max() < 0.25


def test_it_falls_beyond_its_reach():
    known = known_but(256, 256, 0, 16, 256, 256)
    result = pull_push(torch.ones(1, 1, 256, 256), known, reach=16)[0, 0, 128]
    assert result[17] > 0.9 and 0.3 < result[40] < 0.8 and result[200] < 0.2


def test_nothing_known_is_zero():
    assert (pull_push(torch.full((1, 1, 5, 7), float("inf")), torch.zeros(1, 1, 5, 7)) == 0).all()


def test_a_shift_of_colour_goes_and_other_content_stays():
    original = torch.zeros(1, 3, 64, 64)
    distance = torch.zeros(64, 64)
    for ring in range(8):
        distance[: 16 - ring] = ring + 1
    painted = original - 0.1
    result = match_border(painted, original, distance)
    assert result[..., 16, :].abs().max() < 0.01, "next to the border"
    assert (result >= painted).all() and (result[..., -1, :] < -0.04).all(), "far from it the paint's own"
    painted = torch.where(distance > 0, 0.9, -0.1).expand(1, 3, -1, -1)
    assert torch.equal(match_border(painted, original, distance), painted), "no shift: another content"
    assert torch.equal(match_border(painted, original, torch.zeros(64, 64)), painted), "nothing next to it"
