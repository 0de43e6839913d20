"""Guidance and the forms that a conditioning may have."""

import pytest
import torch

from ldm.diffusion.conditioning import batch_size, concat, repeat, take
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import COMPLETE, denoiser
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.errors import InputError

SCHEDULE = Schedule(make_betas("linear", 1000, 0.00085, 0.012))
X_T = torch.linspace(-1, 1, 2 * 4 * 3 * 3, dtype=torch.float64).view(2, 4, 3, 3)
T = torch.tensor([10, 900])


def network(x, t, cond):
    return torch.sin(x) * cond.view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1) / 1000


COND, UNCOND = torch.tensor([0.5, 2.0]).double(), torch.tensor([0.125, 0.25]).double()


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
def test_it_is_the_same_as_guiding_the_output_itself(parameterization: str):
    plain = denoiser(network, SCHEDULE, parameterization)
    guided = ClassifierFreeGuidance(plain, UNCOND, 7.5)(X_T, T, COND)
    u, c = network(X_T, T, UNCOND), network(X_T, T, COND)
    want = COMPLETE[parameterization](X_T, u + 7.5 * (c - u), *SCHEDULE.alpha_sigma(T, X_T))
    torch.testing.assert_close(guided.x_0, want.x_0)
    torch.testing.assert_close(guided.eps, want.eps)


@pytest.mark.parametrize(("uncond", "scale"), [(UNCOND, 1.0), (None, 1.0), (None, 7.5)])
def test_scale_one_is_one_plain_call(uncond, scale: float):
    batches = []

    def counted(x, t, cond):
        batches.append(len(x))
        return network(x, t, cond)

    plain = denoiser(counted, SCHEDULE, "eps")
    guided = ClassifierFreeGuidance(plain, uncond, scale)(X_T, T, COND)
    assert batches == [2]
    assert torch.equal(guided.x_0, plain(X_T, T, COND).x_0)


def test_the_unconditional_half_comes_first_in_one_call():
    seen = []

    def counted(x, t, cond):
        seen.append((len(x), cond["c_adm"].tolist(), cond["c_crossattn"][0].tolist()))
        return x

    cond = {"c_adm": COND, "c_crossattn": [COND + 1]}
    uncond = {"c_adm": UNCOND, "c_crossattn": [UNCOND + 1]}
    ClassifierFreeGuidance(denoiser(counted, SCHEDULE, "eps"), uncond, 3.0)(X_T, T, cond)
    assert seen == [(4, [0.125, 0.25, 0.5, 2.0], [1.125, 1.25, 1.5, 3.0])]


def test_a_part_for_another_batch_is_an_error():
    guided = ClassifierFreeGuidance(denoiser(network, SCHEDULE, "eps"), UNCOND[:1], 2.0)
    with pytest.raises(InputError, match="unconditional input describes 1 samples for a batch of 2"):
        guided(X_T, T, COND)


def test_concat_keeps_the_form():
    a, b = torch.zeros(2, 3), torch.ones(1, 3)
    assert concat(a, b).shape == (3, 3)
    assert [x.tolist() for x in concat([a], [b])] == [[[0, 0, 0], [0, 0, 0], [1, 1, 1]]]
    both = concat({"c_concat": [a], "c_adm": a}, {"c_adm": b, "c_concat": [b]})
    assert both["c_adm"].shape == both["c_concat"][0].shape == (3, 3)
    assert concat(None, None) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(1, 3), {"c_adm": torch.zeros(1, 3)}),
        ({"c_adm": torch.zeros(1, 3)}, {"c_adm": torch.zeros(1, 3), "c_concat": [torch.zeros(1, 3)]}),
        ([torch.zeros(1, 3)], [torch.zeros(1, 3)] * 2),
        (torch.zeros(1, 3), torch.zeros(1, 4)),
        (None, torch.zeros(1, 4)),
        (torch.zeros(1, 4), [torch.zeros(1, 4)]),
    ],
)
def test_different_forms_are_an_error_that_names_both(first, second):
    with pytest.raises(InputError, match="the unconditional part is .*, the conditional part "):
        concat(first, second)


def test_batch_size_repeat_and_take():
    cond = {"c_crossattn": [torch.tensor([[1.0], [2.0]])], "c_adm": torch.tensor([3.0, 4.0])}
    assert batch_size(cond) == 2 and batch_size(None) is None
    twice = repeat(cond, 2)
    assert twice["c_crossattn"][0].flatten().tolist() == [1, 2, 1, 2]
    assert take(twice, slice(1, 3))["c_adm"].tolist() == [4, 3]
    with pytest.raises(InputError, match=r"\[1, 2\] samples"):
        batch_size([torch.zeros(1), torch.zeros(2)])


def test_where_one_half_alone_has_no_concat_each_half_has_its_own_call():
    """ControlNet's guess mode: the unconditional half is not controlled."""
    seen = []

    def network_with_control(x, t, cond):
        control = cond["c_concat"]
        seen.append((len(x), control is not None))
        out = network(x, t, cond["c_crossattn"][0])
        return out if control is None else out + control[0]

    plain = denoiser(network_with_control, SCHEDULE, "eps")
    control = torch.full_like(X_T, 0.25)
    cond = {"c_concat": [control], "c_crossattn": [COND]}
    uncond = {"c_concat": None, "c_crossattn": [UNCOND]}
    guided = ClassifierFreeGuidance(plain, uncond, 7.5)(X_T, T, cond)
    assert sorted(seen) == [(2, False), (2, True)]
    u, c = network(X_T, T, UNCOND), network(X_T, T, COND) + control
    torch.testing.assert_close(guided.eps, u + 7.5 * (c - u))

    seen.clear()
    both = ClassifierFreeGuidance(plain, uncond | {"c_concat": [control]}, 7.5)(X_T, T, cond)
    assert seen == [(4, True)]
    torch.testing.assert_close(both.eps, guided.eps - 6.5 * control)


@pytest.mark.parametrize(
    "uncond",
    [
        {"c_crossattn": [UNCOND]},
        {"c_crossattn": None, "c_concat": [X_T]},
        {"c_crossattn": [UNCOND], "c_adm": None},
    ],
    ids=["no entry", "no text", "another entry"],
)
def test_other_differences_between_the_halves_stay_errors(uncond):
    cond = {"c_crossattn": [COND], "c_concat": [X_T]}
    guided = ClassifierFreeGuidance(denoiser(network, SCHEDULE, "eps"), uncond, 7.5)
    with pytest.raises(InputError, match="unconditional part"):
        guided(X_T, T, cond)
