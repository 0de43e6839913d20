"""Guidance: every wrapper on its own and all of them together."""

import pytest
import torch

from ldm.diffusion.cond import Cond, Control
from ldm.diffusion.guidance import LATENT_RANGE, ClassifierFreeGuidance, DynamicThreshold, Guidance
from ldm.diffusion.prediction import COMPLETE, Prediction, denoiser, network_output
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.errors import InputError
from ldm.samplers import SAMPLERS, make_sampler, sample_loop

SCHEDULE = Schedule(make_betas("linear", 1000, 0.00085, 0.012))
X_T = torch.linspace(-1, 1, 2 * 4 * 3 * 3, dtype=torch.float64).view(2, 4, 3, 3)
T = torch.tensor([10, 900])


def network(x, t, cond):
    return torch.sin(x) * cond.context.view(-1, 1, 1, 1) + t.view(-1, 1, 1, 1) / 1000


TEXT, EMPTY = torch.tensor([0.5, 2.0]).double(), torch.tensor([0.125, 0.25]).double()
COND, UNCOND = Cond(TEXT), Cond(EMPTY)


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
        seen.append((len(x), cond.label.tolist(), cond.context.tolist()))
        return x

    cond, uncond = Cond(TEXT + 1, label=TEXT), Cond(EMPTY + 1, label=EMPTY)
    ClassifierFreeGuidance(denoiser(counted, SCHEDULE, "eps"), uncond, 3.0)(X_T, T, cond)
    assert seen == [(4, [0.125, 0.25, 0.5, 2.0], [1.125, 1.25, 1.5, 3.0])]


def test_a_part_for_another_batch_is_an_error():
    guided = ClassifierFreeGuidance(denoiser(network, SCHEDULE, "eps"), UNCOND.take([0]), 2.0)
    with pytest.raises(InputError, match="unconditional input describes 1 samples for a batch of 2"):
        guided(X_T, T, COND)


def test_where_one_half_alone_is_controlled_each_half_has_its_own_call():
    """ControlNet's guess mode: the unconditional half is not controlled."""
    seen = []

    def network_with_control(x, t, cond):
        seen.append((len(x), len(cond.controls)))
        return network(x, t, cond) + sum(control.hint for control in cond.controls)

    plain = denoiser(network_with_control, SCHEDULE, "eps")
    control = torch.full_like(X_T, 0.25)
    cond = Cond(TEXT, controls=(Control(network, control),))
    guided = ClassifierFreeGuidance(plain, UNCOND, 7.5)(X_T, T, cond)
    assert sorted(seen) == [(2, 0), (2, 1)]
    u, c = network(X_T, T, UNCOND), network(X_T, T, COND) + control
    torch.testing.assert_close(guided.eps, u + 7.5 * (c - u))

    seen.clear()
    both = ClassifierFreeGuidance(plain, Cond(EMPTY, controls=cond.controls), 7.5)(X_T, T, cond)
    assert seen == [(4, 1)]
    torch.testing.assert_close(both.eps, guided.eps - 6.5 * control)


@pytest.mark.parametrize(
    "uncond",
    [Cond(EMPTY), Cond(concat=X_T), Cond(EMPTY, X_T, EMPTY), Cond(EMPTY, X_T[:, :3])],
    ids=["no channels", "no text", "a label", "other channels"],
)
def test_other_differences_between_the_halves_are_errors(uncond):
    guided = ClassifierFreeGuidance(denoiser(network, SCHEDULE, "eps"), uncond, 7.5)
    with pytest.raises(InputError, match="the unconditional part is .*, the conditional part "):
        guided(X_T, T, Cond(TEXT, X_T))


def counted(network):
    """Return the network and a list of its calls: (batch, first time)."""
    calls = []

    def wrapped(x, t, cond):
        calls.append((len(x), float(t[0])))
        return network(x, t, cond)

    return wrapped, calls


def around(parameterization, scale=7.5, uncond=UNCOND, net=network, schedule=SCHEDULE, **options):
    plain = denoiser(net, schedule, parameterization)
    return Guidance(scale, **options).around(plain, uncond, schedule, parameterization)


def assert_consistent(prediction: Prediction, x_t, t, schedule=SCHEDULE):
    alpha, sigma = schedule.alpha_sigma(t, x_t)
    torch.testing.assert_close(alpha * prediction.x_0 + sigma * prediction.eps, x_t)


@pytest.mark.parametrize("parameterization", COMPLETE)
def test_what_is_off_is_not_there(parameterization: str):
    assert type(around(parameterization)) is ClassifierFreeGuidance
    plain = ClassifierFreeGuidance(denoiser(network, SCHEDULE, parameterization), UNCOND, 7.5)(X_T, T, COND)
    for options in ({"rescale": 0.0}, {"interval": (0.0, 1.0)}, {}):
        got = around(parameterization, **options)(X_T, T, COND)
        assert torch.equal(got.x_0, plain.x_0) and torch.equal(got.eps, plain.eps)


@pytest.mark.few(3)
@pytest.mark.parametrize("parameterization", COMPLETE)
@pytest.mark.parametrize("phi", [0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers_on_the_output_of_the_network(parameterization: str, phi: float):
    from diffusers.guiders.guider_utils import rescale_noise_cfg

    got = around(parameterization, rescale=phi)(X_T, T, COND)
    u, c = network(X_T, T, UNCOND), network(X_T, T, COND)
    want = rescale_noise_cfg(u + 7.5 * (c - u), c, guidance_rescale=phi)
    output = network_output(got, parameterization, *SCHEDULE.alpha_sigma(T, X_T))
    torch.testing.assert_close(output, want, rtol=1e-9, atol=1e-9)
    assert_consistent(got, X_T, T)
    x_t = X_T.float()
    single = around(parameterization, uncond=Cond(EMPTY.float()), rescale=phi)(x_t, T, Cond(TEXT.float()))
    output = network_output(single, parameterization, *SCHEDULE.alpha_sigma(T, x_t))
    torch.testing.assert_close(output, want.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parameterization", COMPLETE)
def test_rescaling_fully_gives_each_sample_the_spread_of_the_conditional_one(parameterization: str):
    got = around(parameterization, rescale=1.0)(X_T, T, COND)
    output = network_output(got, parameterization, *SCHEDULE.alpha_sigma(T, X_T))
    wanted = network(X_T, T, COND).flatten(1).std(1)
    torch.testing.assert_close(output.flatten(1).std(1), wanted)
    alone = around(parameterization, rescale=1.0, uncond=UNCOND.take([0]))(X_T[:1], T[:1], COND.take([0]))
    torch.testing.assert_close(alone.x_0, got.x_0[:1])  # whatever else is in the batch


def test_rescaling_leaves_an_output_without_contrast_finite():
    def constant(x, t, cond):
        return torch.ones_like(x) * cond.context.view(-1, 1, 1, 1)

    flat = around("eps", rescale=0.7, net=constant)
    got = flat(X_T, T, COND)
    torch.testing.assert_close(got.eps, (EMPTY + 7.5 * (TEXT - EMPTY)).view(-1, 1, 1, 1).expand_as(X_T))


def test_rescaling_without_guidance_is_none():
    net, calls = counted(network)
    got = around("v", scale=1.0, rescale=0.7, net=net)(X_T, T, COND)
    assert calls == [(2, 10.0)]
    assert torch.equal(got.x_0, denoiser(network, SCHEDULE, "v")(X_T, T, COND).x_0)


@pytest.mark.parametrize("time", [torch.tensor, lambda values: torch.tensor(values).double()])
def test_outside_the_interval_only_the_conditional_pass_runs(time):
    net, calls = counted(network)
    denoise = around("eps", net=net, interval=(0.25, 0.75), rescale=0.5)
    expected = {0: 2, 249: 2, 250: 4, 500: 4, 749: 4, 750: 2, 999: 2}
    for t in expected:
        got = denoise(X_T, time([t, t]), COND)
        if expected[t] == 2:
            plain = denoiser(network, SCHEDULE, "eps")(X_T, time([t, t]), COND)
            assert torch.equal(got.x_0, plain.x_0) and torch.equal(got.eps, plain.eps)
    assert calls == [(size, t) for t, size in expected.items()]


def test_the_ends_belong_to_the_interval():
    net, calls = counted(network)
    denoise = around("eps", net=net, interval=(0.0, 1.0))
    for t in (0, 999, 0.0, 999.0):
        denoise(X_T, torch.tensor([t, t]), COND)
    assert [size for size, _ in calls] == [4, 4, 4, 4]


def test_samples_at_different_times_each_get_their_own():
    got = around("v", interval=(0.5, 1.0))(X_T, T, COND)  # times 10 and 900
    guided, plain = around("v")(X_T, T, COND), denoiser(network, SCHEDULE, "v")(X_T, T, COND)
    assert torch.equal(got.x_0, torch.stack([plain.x_0[0], guided.x_0[1]]))
    assert torch.equal(got.eps, torch.stack([plain.eps[0], guided.eps[1]]))


@pytest.mark.parametrize("parameterization", COMPLETE)
def test_small_clean_latents_are_not_thresholded(parameterization: str):
    plain = around(parameterization, scale=1.0)
    got = DynamicThreshold(plain, 0.9, SCHEDULE, value=1000.0)(X_T, T, COND)
    want = plain(X_T, T, COND)
    assert torch.equal(got.x_0, want.x_0) and torch.equal(got.eps, want.eps)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_thresholding_is_that_of_diffusers(percentile: float):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=percentile, sample_max_value=float("inf")
    )
    plain = denoiser(lambda x, t, cond: 3 * network(x, t, cond), SCHEDULE, "x0")
    got = DynamicThreshold(plain, percentile, SCHEDULE, value=1.0)(X_T, T, COND)
    want = scheduler._threshold_sample(plain(X_T, T, COND).x_0)
    torch.testing.assert_close(got.x_0, want, rtol=1e-12, atol=1e-12)
    assert_consistent(got, X_T, T)


def test_thresholding_is_by_sample_and_keeps_latents_in_their_range():
    big = torch.tensor([1.0, 30.0], dtype=torch.float64).view(2, 1, 1, 1)
    plain = denoiser(lambda x, t, cond: big * x, SCHEDULE, "x0")
    got = DynamicThreshold(plain, 0.9, SCHEDULE)(X_T, T, COND)
    assert torch.equal(got.x_0[0], X_T[0])
    assert got.x_0[1].abs().max() == LATENT_RANGE == 4
    s = torch.quantile(30 * X_T[1].abs(), 0.9)
    torch.testing.assert_close(got.x_0[1], (30 * X_T[1]).clamp(-s, s) / s * 4)
    assert_consistent(got, X_T, T)


def test_the_order_of_all_three():
    """The threshold sees what the interval lets through, and the rescaling is inside the interval."""
    options = {"rescale": 0.7, "interval": (0.5, 1.0), "threshold": 0.9}
    for t, inner in ((900, around("v", rescale=0.7)), (100, denoiser(network, SCHEDULE, "v"))):
        times = torch.tensor([t, t])
        x_t = 20 * X_T  # so that there is something to threshold
        want = DynamicThreshold(inner, 0.9, SCHEDULE)(x_t, times, COND)
        got = around("v", **options)(x_t, times, COND)
        assert torch.equal(got.x_0, want.x_0) and torch.equal(got.eps, want.eps)
        assert not torch.equal(got.x_0, inner(x_t, times, COND).x_0)


def test_all_three_from_pure_noise():
    schedule = SCHEDULE.with_zero_terminal_snr()
    t = torch.tensor([999, 999])
    options = {"rescale": 0.7, "interval": (0.5, 1.0), "threshold": 0.9}
    got = around("v", schedule=schedule, net=lambda *a: 20 * network(*a), **options)(X_T, t, COND)
    assert torch.isfinite(got.x_0).all() and torch.equal(got.eps, X_T)
    assert got.x_0.abs().max() <= LATENT_RANGE + 1e-9


@pytest.mark.parametrize("guess", [False, True], ids=["control", "guess mode"])
def test_all_three_with_every_part_of_a_conditioning(guess: bool):
    calls = []

    def net(x, t, cond):
        calls.append(len(x))
        out = network(x, t, cond) + cond.label.view(-1, 1, 1, 1) + cond.concat
        return out + sum(control.hint for control in cond.controls)

    controls = (Control(network, torch.full_like(X_T, 0.25)),)
    cond, uncond = Cond(TEXT, X_T, TEXT, controls), Cond(EMPTY, X_T, EMPTY, () if guess else controls)
    options = {"rescale": 0.7, "interval": (0.5, 1.0), "threshold": 0.9}
    denoise = around("v", uncond=uncond, net=net, **options)
    for t, sizes in ((900, [2, 2] if guess else [4]), (100, [2])):
        got = denoise(X_T, torch.tensor([t, t]), cond)
        assert calls == sizes
        calls.clear()
        assert_consistent(got, X_T, torch.tensor([t, t]))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("parameterization", ["eps", "v"])
def test_every_sampler_with_all_three_and_a_mask(name: str, parameterization: str):
    net, calls = counted(network)
    sampler = make_sampler(name, SCHEDULE, 6)
    options = {"rescale": 0.7, "interval": (0.3, 0.8), "threshold": 0.9}
    denoise = around(parameterization, scale=15.0, net=net, **options)
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(2, 1, 3, 3)
    mask[..., 0] = 1
    steps = sample_loop(
        sampler, denoise, X_T * 3, COND, keep_mask=mask, keep_x_0=X_T,
        noise=lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype),
    )
    *_, last = steps
    assert torch.isfinite(last.x_t).all()
    assert len(calls) == sampler.evaluations()
    assert {size for size, _ in calls} == {2, 4}
    assert all((size == 4) == (0.3 <= t / 999 <= 0.8) for size, t in calls)


@pytest.mark.parametrize(
    "options",
    [
        {"rescale": -0.1},
        {"rescale": 1.1},
        {"rescale": float("nan")},
        {"interval": (0.5, 0.5)},
        {"interval": (0.8, 0.2)},
        {"interval": (-0.1, 0.2)},
        {"interval": (0.2, 5.42)},
        {"interval": (float("nan"), 0.2)},
        {"threshold": 0.0},
        {"threshold": 99.5},
        {"threshold": float("nan")},
    ],
)
def test_impossible_guidance_is_refused(options):
    with pytest.raises(InputError, match="expected"):
        Guidance(7.5, **options)


def test_a_sample_does_not_depend_on_its_batch():
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(3, 4, 96, 96, generator=generator) * 3
    t = torch.tensor([500] * 3)
    cond, uncond = Cond(torch.tensor([0.5, 2.0, 1.0])), Cond(torch.tensor([0.1, 0.2, 0.3]))
    options = {"rescale": 0.7, "threshold": 0.995}
    together = around("v", uncond=uncond, **options)(x_t, t, cond)
    for i in range(3):
        one = slice(i, i + 1)
        alone = around("v", uncond=uncond.take(one), **options)(x_t[one], t[one], cond.take(one))
        assert torch.equal(alone.x_0, together.x_0[one]) and torch.equal(alone.eps, together.eps[one])


def test_the_sigmas_that_the_help_gives_are_at_those_times():
    times = [t / 999 for t in SCHEDULE.times_of_sigma([0.19, 0.28, 1, 1.6, 2.9, 5.4, 14.6])]
    assert times == pytest.approx([0.04, 0.07, 0.35, 0.50, 0.67, 0.81, 1], abs=0.006)
