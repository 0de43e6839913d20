"""Every sampler and spacing from pure noise: it works, or says in one line what does."""

import pytest
import torch

from gaussian_data import MU, SCHEDULE, S
from ldm.diffusion.prediction import denoiser
from ldm.diffusion.spacing import SPACINGS
from ldm.errors import InputError
from ldm.samplers import SAMPLERS, make_sampler, sample_loop

ZERO = SCHEDULE.with_zero_terminal_snr()
X = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)


def v_network(x_t, t, cond=None):
    """Return the exact v of Gaussian data."""
    alpha, sigma = ZERO.alpha_sigma(t, x_t)
    x_0 = MU + alpha * S**2 / (alpha**2 * S**2 + sigma**2) * (x_t - alpha * MU)
    return (alpha * x_t - x_0) / sigma


def run(sampler):
    calls = []

    def counted(x_t, t, cond):
        calls.append(t)
        return v_network(x_t, t)

    steps = list(sample_loop(sampler, denoiser(counted, ZERO, "v"), X, None))
    return steps, calls


@pytest.mark.few(42)
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 9])
def test_it_is_finite_and_exactly_as_long_or_names_trailing(name: str, spacing: str, steps: int):
    if spacing in ("karras", "exponential"):
        with pytest.raises(InputError, match="use --schedule trailing"):
            make_sampler(name, ZERO, steps, spacing=spacing)
        return
    sampler = make_sampler(name, ZERO, steps, spacing=spacing)
    taken, calls = run(sampler)
    assert len(calls) == sampler.evaluations() == steps
    assert all(torch.isfinite(step.x_t).all() and torch.isfinite(step.x_0).all() for step in taken)


@pytest.mark.few(6)
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ddpm", "lcm"}))
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_pure_noise_is_carried_to_the_exact_solution(name: str, spacing: str):
    """At alpha 0 the path starts at a standard normal number, so it ends at mu + s x."""
    eta = 0.0 if SAMPLERS[name].cls.default_eta else None
    for steps in (99, 100):  # Heun starts differently with an even number
        sampler = make_sampler(name, ZERO, steps, spacing=spacing, eta=eta)
        assert sampler.timesteps[0] == 999
        *_, end = run(sampler)[0]
        assert (end.x_t - (MU + S * X)).abs().max() < 0.05


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["ddim", "plms", "dpm"])
@pytest.mark.parametrize("steps", [27, 50, 1000])
def test_reference_times_work_too(name: str, steps: int):
    *_, end = run(make_sampler(name, ZERO, steps))[0]
    assert torch.isfinite(end.x_t).all()


def test_eps_says_nothing_of_x_0_there():
    with pytest.raises(InputError, match="predicts eps: .* expected a model that predicts v"):
        denoiser(v_network, ZERO, "eps")
    denoiser(v_network, SCHEDULE, "eps")
    denoiser(v_network, ZERO, "x0")
