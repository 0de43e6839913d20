"""eps, v and x_0 say the same thing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.diffusion.prediction import COMPLETE, add_noise, denoiser, velocity
from ldm.diffusion.schedule import Schedule, make_betas
from ldm.errors import ConfigError

SCHEDULE = Schedule(make_betas("linear", 1000, 0.00085, 0.012))


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
@settings(max_examples=20, deadline=None)
@given(t=st.integers(0, 999), seed=st.integers(0, 100))
def test_the_true_output_completes_to_the_true_pair(parameterization: str, t: int, seed: int):
    torch.manual_seed(seed)
    x_0, eps = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    times = torch.full((3,), t)
    x_t = add_noise(SCHEDULE, x_0, eps, times)
    outputs = {"eps": eps, "x0": x_0, "v": velocity(SCHEDULE, x_0, eps, times)}
    prediction = COMPLETE[parameterization](x_t, outputs[parameterization], *SCHEDULE.alpha_sigma(times, x_t))
    torch.testing.assert_close(prediction.x_0, x_0)
    torch.testing.assert_close(prediction.eps, eps)


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
def test_every_prediction_is_consistent_at_fractional_times(parameterization: str):
    x_t = torch.randn(2, 4, 2, 2, dtype=torch.float64)
    t = torch.tensor([0.5, 799.2], dtype=torch.float64)
    seen = []

    def network(x, t, cond):
        seen.append((t, cond))
        return torch.sin(x)

    prediction = denoiser(network, SCHEDULE, parameterization)(x_t, t, "prompt")
    alpha, sigma = SCHEDULE.alpha_sigma(t, x_t)
    torch.testing.assert_close(alpha * prediction.x_0 + sigma * prediction.eps, x_t)
    assert seen[0][0] is t and seen[0][1] == "prompt"


def test_a_half_precision_network_gives_float32_predictions():
    denoise = denoiser(lambda x, t, c: x.half(), SCHEDULE, "eps")
    prediction = denoise(torch.randn(1, 4, 2, 2).half(), torch.tensor([5]), None)
    assert prediction.x_0.dtype == prediction.eps.dtype == torch.float32


def test_an_unknown_parameterization_is_an_error():
    with pytest.raises(ConfigError, match="'score'.*eps, v, x0"):
        denoiser(lambda x, t, c: x, SCHEDULE, "score")
