"""Where the steps are put: counts, ends, order, and agreement with the published times."""

import pytest

from gaussian_data import SCHEDULE
from ldm.diffusion.spacing import SPACINGS, spaced_times
from ldm.diffusion.timesteps import ddim_timesteps
from ldm.errors import InputError


@pytest.mark.parametrize("name", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 30, 37, 50])
def test_exactly_as_many_times_as_asked_for_from_noisy_to_clean(name: str, steps: int):
    times = spaced_times(name, SCHEDULE, steps)
    assert len(times) == steps
    assert times == sorted(set(times), reverse=True) and 0 <= times[-1] and times[0] <= 999
    assert all(isinstance(t, float if name in ("karras", "exponential") else int) for t in times)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 50, 100])
def test_uniform_and_quad_are_the_published_times_where_those_keep_count(steps: int):
    assert spaced_times("uniform", SCHEDULE, steps)[::-1] == ddim_timesteps(steps).tolist()
    if steps <= 20:  # from then on the published ones repeat their first times
        assert spaced_times("quad", SCHEDULE, steps)[::-1] == ddim_timesteps(steps, method="quad").tolist()


def test_known_times():
    assert spaced_times("trailing", SCHEDULE, 4) == [999, 749, 499, 249]
    assert spaced_times("linspace", SCHEDULE, 4) == [999, 666, 333, 0]
    assert spaced_times("uniform", SCHEDULE, 30)[:2] == [967, 934]
    for name in ("karras", "exponential"):
        for steps in (2, 5, 30):
            times = spaced_times(name, SCHEDULE, steps)
            assert (times[0], times[-1]) == (999.0, 0.0)  # exactly: DDIM asks whether the last one is 0
        assert spaced_times(name, SCHEDULE, 1) == [999.0]


def test_karras_times_have_the_sigmas_of_the_paper():
    import torch

    times = torch.tensor(spaced_times("karras", SCHEDULE, 9), dtype=torch.float64)
    alpha, sigma = SCHEDULE.alpha_sigma(times, times)
    root = (sigma / alpha) ** (1 / 7)
    torch.testing.assert_close(root.diff(), root.diff()[:1].expand(8), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "steps"), [("cubic", 10), ("karas", 10), ("uniform", 0), ("linspace", 1001)]
)
def test_what_there_is_not_is_refused(name: str, steps: int):
    with pytest.raises(InputError, match="expected one of|trained with 1 to 1000"):
        spaced_times(name, SCHEDULE, steps)
