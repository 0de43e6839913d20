"""Where a sampler puts its steps: `--schedule`.

Each spacing is a function (schedule, num_steps) -> times, noisiest first and exactly `num_steps` of them.
Whole times come as int, fractional ones as float; a step leads from each time to the next and from the last
one to where the sampler ends. The reference scripts' own choice, which can give more steps than asked for,
is `timesteps.ddim_timesteps`; "uniform" agrees with it wherever num_steps divides the training times.
"""

import math
from collections.abc import Callable

import numpy as np

from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError, nearest

RHO = 7.0  # arXiv 2206.00364, table 1


def _whole(times: np.ndarray) -> list[int]:
    return [int(t) for t in times]


def _uniform(schedule: Schedule, n: int) -> list[int]:
    """1 + floor(i N / n), the reference stride without its rounding."""
    times = np.arange(n) * schedule.num_timesteps // n + 1
    return _whole(np.minimum(times, schedule.num_timesteps - 1)[::-1])


def _quad(schedule: Schedule, n: int) -> list[int]:
    """Denser towards the image: the reference "quad" (arXiv 2010.02502, appendix D.3), no time twice."""
    times = (np.linspace(0, math.sqrt(0.8 * schedule.num_timesteps), n) ** 2).astype(np.int64) + 1
    return _whole(np.minimum(np.maximum(times, np.arange(1, n + 1)), schedule.num_timesteps - 1)[::-1])


def _trailing(schedule: Schedule, n: int) -> list[int]:
    """N - 1, N - 1 - N/n, ...: begins at the noisiest time (arXiv 2305.08891, table 2)."""
    return _whole(np.round(np.arange(schedule.num_timesteps, 0, -schedule.num_timesteps / n)[:n]) - 1)


def _linspace(schedule: Schedule, n: int) -> list[int]:
    """From N - 1 to 0, both visited (arXiv 2305.08891, table 2)."""
    return _whole(np.round(np.linspace(schedule.num_timesteps - 1, 0, n)))


def _karras(schedule: Schedule, n: int) -> list[float]:
    """Even in sigma_karras^(1/7), from the noisiest time to 0 (arXiv 2206.00364, eq. 5)."""
    high, low = _sigma_range(schedule)
    ramp = np.linspace(0, 1, n)
    sigmas = (high ** (1 / RHO) + ramp * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO
    return _at_both_ends(schedule, schedule.times_of_sigma(sigmas))


def _exponential(schedule: Schedule, n: int) -> list[float]:
    """Even in log sigma_karras, hence in lambda (arXiv 2206.00927, "logSNR")."""
    high, low = _sigma_range(schedule)
    sigmas = np.exp(np.linspace(math.log(high), math.log(low), n))
    return _at_both_ends(schedule, schedule.times_of_sigma(sigmas))


def _at_both_ends(schedule: Schedule, times: list[float]) -> list[float]:
    """Undo the rounding at the ends: samplers ask whether the last time is 0."""
    last = [0.0] if len(times) > 1 else []
    return [schedule.num_timesteps - 1.0, *times[1 : len(times) - len(last)], *last]


def _sigma_range(schedule: Schedule) -> tuple[float, float]:
    abar = schedule.alphas_cumprod
    high, low = float(((1 - abar[-1]) / abar[-1]).sqrt()), float(((1 - abar[0]) / abar[0]).sqrt())
    if not math.isfinite(high):
        raise InputError(
            "karras and exponential have no largest sigma to start from with zero terminal SNR; "
            "use --schedule trailing"
        )
    return high, low


SPACINGS: dict[str, Callable[[Schedule, int], list[int] | list[float]]] = {
    "uniform": _uniform,
    "quad": _quad,
    "trailing": _trailing,
    "linspace": _linspace,
    "karras": _karras,
    "exponential": _exponential,
}


def check_spacing(name: str) -> None:
    """Raise InputError unless this is a spacing."""
    if name not in SPACINGS:
        hint = nearest(name, SPACINGS)
        raise InputError(f"unknown schedule {name!r}: expected one of {', '.join(SPACINGS)}{hint}")


def spaced_times(name: str, schedule: Schedule, num_steps: int) -> list[int] | list[float]:
    """Return exactly `num_steps` times, noisiest first.

    Raises:
        InputError: the name is unknown, or there are not so many times.
    """
    check_spacing(name)
    if not 1 <= num_steps <= schedule.num_timesteps:
        most = schedule.num_timesteps
        raise InputError(f"{num_steps} sampling steps: the model was trained with 1 to {most}")
    times = SPACINGS[name](schedule, num_steps)
    if len(set(times)) < len(times):
        raise InputError(f"schedule {name!r} visits a time twice in {num_steps} steps; use fewer, or uniform")
    return times
