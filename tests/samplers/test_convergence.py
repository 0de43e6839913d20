"""Samplers against the exact solution of the sampling ODE, in float64."""

import pytest
import torch

from gaussian_data import MU, SCHEDULE, S, denoise, exact, network
from ldm.diffusion.prediction import denoiser
from ldm.samplers import DDIM, DDPM, PLMS, DDIMInversion, DPMSolver, sample_loop

X = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 3, 3)


def last(sampler, x_t, denoise=denoise, **options):
    *_, step = sample_loop(sampler, denoise, x_t, None, **options)
    return step.x_t


def error(sampler) -> float:
    return float((last(sampler, X) - exact(X, sampler.timesteps[0], 0)).abs().max())


@pytest.mark.parametrize(
    ("cls", "steps", "order"), [(DDIM, (50, 100, 200), 1), (DPMSolver, (400, 800, 1600), 2)]
)
def test_order_of_convergence(cls, steps: tuple[int, ...], order: int):
    errors = [error(cls(SCHEDULE, n)) for n in steps]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 2**order * 0.85 < coarse / fine < 2**order * 1.25, errors


def test_plms_is_far_closer_than_ddim():
    for steps in (50, 100, 200):
        assert error(PLMS(SCHEDULE, steps)) < error(DDIM(SCHEDULE, steps)) / 5


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
@pytest.mark.parametrize("cls", [DDIM, PLMS, DPMSolver])
def test_the_parameterization_makes_no_difference(cls, parameterization: str):
    other = denoiser(network(parameterization), SCHEDULE, parameterization)
    torch.testing.assert_close(last(cls(SCHEDULE, 20), X, other), last(cls(SCHEDULE, 20), X))


@pytest.mark.parametrize("cls", [DDIM, PLMS])
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 27, 30, 1000])
def test_step_counts_that_crash_in_the_reference_work(cls, steps: int):
    """With more steps the error falls, also where the last time has been moved to the end."""
    assert error(cls(SCHEDULE, steps)) < 4 / steps


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 1000])
def test_dpm_solver_takes_any_number_of_steps(steps: int):
    assert error(DPMSolver(SCHEDULE, steps)) < 4 / steps


def test_inversion_follows_the_same_ode_upwards_and_ddim_brings_it_back():
    back, errors = [], []
    for steps in (50, 100, 200):
        inversion = DDIMInversion(SCHEDULE, steps)
        noisy = last(inversion, X)
        end = DDIM(SCHEDULE, steps).timesteps[0]
        errors.append(float((noisy - exact(X, 0, end)).abs().max()))
        back.append(float((last(DDIM(SCHEDULE, steps), noisy) - X).abs().max()))
    for coarse, fine in (*zip(errors, errors[1:], strict=False), *zip(back, back[1:], strict=False)):
        assert 1.6 < coarse / fine < 2.5, (errors, back)
    assert back[-1] < 0.1


@pytest.mark.parametrize("make", [lambda: DDIM(SCHEDULE, 500, eta=1.0), lambda: DDPM(SCHEDULE)])
def test_ancestral_samples_have_the_distribution_of_the_data(make):
    x_T = torch.randn(1, 1, 100, 100, dtype=torch.float64)
    samples = last(make(), x_T)
    assert float(samples.mean()) == pytest.approx(MU, abs=0.02)
    assert float(samples.std()) == pytest.approx(S, rel=0.04)
