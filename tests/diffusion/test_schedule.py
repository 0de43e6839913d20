"""The noise schedule: published values, identities, whole and fractional times."""

import math

import numpy as np
import pytest
import torch

from ldm.diffusion.schedule import Schedule, make_betas
from ldm.errors import ConfigError


@pytest.fixture
def schedule() -> Schedule:
    return Schedule(make_betas("linear", 1000, 0.00085, 0.012))


def test_published_values(schedule: Schedule):
    published = {0: 0.99915, 1: 0.9982960278, 20: 0.9813143622, 500: 0.2763326838, 999: 0.0046600985}
    for t, abar in published.items():
        assert float(schedule.alphas_cumprod[t]) == pytest.approx(abar, abs=1e-10)
    capped = make_betas("squaredcos_cap_v2")
    assert capped[[0, 500, 999]] == pytest.approx([4.128422482e-05, 0.003155691442, 0.999], rel=1e-9)
    assert make_betas("cosine") == pytest.approx(capped)


def test_linear_is_linear_in_the_root_and_sqrt_linear_is_linear():
    root = np.sqrt(make_betas("linear", 11, 0.01, 0.04))
    assert np.diff(root) == pytest.approx(0.01)
    assert np.diff(make_betas("sqrt_linear", 11, 0.01, 0.04)) == pytest.approx(0.003)
    assert make_betas("sqrt", 11, 0.01, 0.04) ** 2 == pytest.approx(make_betas("sqrt_linear", 11, 0.01, 0.04))


@pytest.mark.parametrize("name", ["linear", "sqrt_linear", "sqrt", "cosine", "squaredcos_cap_v2"])
def test_alpha_and_sigma_lie_on_the_circle_and_whole_fractions_are_whole(name: str):
    schedule = Schedule(make_betas(name, 50, 1e-4, 2e-2))
    like = torch.zeros(50, 1, 1, dtype=torch.float64)
    t = torch.arange(50)
    alpha, sigma = schedule.alpha_sigma(t, like)
    assert alpha.shape == (50, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    for got, want in zip(schedule.alpha_sigma(t.double(), like), (alpha, sigma), strict=True):
        torch.testing.assert_close(got, want)


def test_log_alpha_is_linear_between_times(schedule: Schedule):
    t = torch.tensor([10.25], dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t, t)
    a, b = (0.5 * math.log(schedule.alphas_cumprod[i]) for i in (10, 11))
    assert float(alpha.log()) == pytest.approx(0.75 * a + 0.25 * b, rel=1e-12)
    assert float(alpha**2 + sigma**2) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_latents_get_float32_factors(schedule: Schedule, dtype: torch.dtype):
    alpha, sigma = schedule.alpha_sigma(torch.tensor([999]), torch.zeros(1, 4, 2, 2, dtype=dtype))
    assert alpha.dtype == sigma.dtype == torch.float32
    assert alpha.shape == (1, 1, 1, 1)


def test_posterior_matches_bayes_rule(schedule: Schedule):
    """q(x_{t-1} | x_t, x_0) is the product of two Gaussians in x_{t-1}."""
    t = torch.tensor([1, 300, 999])
    x_0, x_t = torch.randn(2, 3, 2, dtype=torch.float64)
    mean, variance, log_variance = schedule.posterior(x_0, x_t, t)
    beta = schedule.betas[t][:, None]
    prev = schedule.alphas_cumprod_prev[t][:, None]
    precision = (1 - beta) / beta + 1 / (1 - prev)
    torch.testing.assert_close(variance, 1 / precision)
    torch.testing.assert_close(log_variance.exp(), variance)
    pulled = (1 - beta).sqrt() / beta * x_t + prev.sqrt() / (1 - prev) * x_0
    torch.testing.assert_close(mean, pulled / precision)


def test_v_posterior_moves_the_variance_to_beta():
    betas = make_betas(timesteps=20)
    torch.testing.assert_close(Schedule(betas, v_posterior=1.0).posterior_variance, torch.from_numpy(betas))


def test_it_is_real_inside_a_meta_device_block():
    with torch.device("meta"):
        schedule = Schedule(make_betas())
        buffers = schedule.published_buffers()
    assert {x.device.type for x in buffers.values()} == {"cpu"}
    assert len(buffers) == 12
    assert {x.dtype for x in buffers.values()} == {torch.float32}


def test_tables_made_while_sampling_serve_training(schedule: Schedule):
    x = torch.ones(1, 1, requires_grad=True)
    with torch.inference_mode():
        schedule.alpha_sigma(torch.tensor([3]), x)
    alpha, _ = schedule.alpha_sigma(torch.tensor([3]), x)
    (alpha * x).sum().backward()
    torch.testing.assert_close(x.grad, alpha.view(1, 1))


def test_it_can_be_built_from_alphas_cumprod(schedule: Schedule):
    again = Schedule.from_alphas_cumprod(schedule.alphas_cumprod)
    torch.testing.assert_close(again.betas, schedule.betas)
    assert torch.equal(again.alphas_cumprod, schedule.alphas_cumprod)


def test_zero_terminal_snr_shifts_and_scales_the_signal(schedule: Schedule):
    rescaled = schedule.with_zero_terminal_snr()
    assert rescaled.alphas_cumprod[-1] == 0 and rescaled.zero_terminal_snr and not schedule.zero_terminal_snr
    torch.testing.assert_close(rescaled.alphas_cumprod[0], schedule.alphas_cumprod[0])
    before, after = schedule.alphas_cumprod.sqrt(), rescaled.alphas_cumprod.sqrt()
    scale = after[0] / (before[0] - before[-1])
    torch.testing.assert_close(after.diff(), scale * before.diff())
    assert all(table.isfinite().all() for table in (rescaled.betas, rescaled.posterior_variance))
    assert float(rescaled.snr(torch.tensor([999]))) == 0
    again = rescaled.with_zero_terminal_snr()
    torch.testing.assert_close(again.alphas_cumprod, rescaled.alphas_cumprod)


def test_zero_terminal_snr_is_that_of_diffusers(schedule: Schedule):
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(trained_betas=schedule.betas.numpy(), rescale_betas_zero_snr=True)
    ours = schedule.with_zero_terminal_snr()
    torch.testing.assert_close(theirs.alphas_cumprod.double(), ours.alphas_cumprod, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_between_reach_zero_terminal_snr_without_a_gap(schedule: Schedule, dtype: torch.dtype):
    rescaled = schedule.with_zero_terminal_snr()
    t = torch.tensor([0, 500, 997, 998, 998.25, 998.999, 999], dtype=dtype)
    alpha, sigma = rescaled.alpha_sigma(t, t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert (alpha.diff() < 0).all() and alpha[-1] == 0 and sigma[-1] == 1
    torch.testing.assert_close(alpha[4], 0.75 * alpha[3])
    whole = rescaled.alpha_sigma(t[[0, 1, 2, 3, 6]].long(), t)
    torch.testing.assert_close(alpha[[0, 1, 2, 3, 6]], whole[0])


def test_faults_are_named():
    with pytest.raises(ConfigError, match="ends noisier than it begins"):
        Schedule(np.zeros(3)).with_zero_terminal_snr()
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        make_betas("cosin")
    with pytest.raises(ConfigError, match="at least 1"):
        make_betas(timesteps=0)
    with pytest.raises(ConfigError, match="lie in"):
        Schedule(np.array([0.1, 1.0]))
    with pytest.raises(ConfigError, match="one number per training step"):
        Schedule(np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="eps, v or x0"):
        Schedule(make_betas()).lvlb_weights("score")
