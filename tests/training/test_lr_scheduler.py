"""Learning rates."""

import pytest

from ldm.training.lr_scheduler import LambdaLinearScheduler, learning_rate_factor


def test_published_schedule_of_v1():
    schedule = LambdaLinearScheduler([10000], [1.0], [1.0], [1e-6], [10000000000000]).schedule
    assert schedule(0) == 1e-6
    assert schedule(5000) == pytest.approx(0.5000005)
    assert schedule(10000) == schedule(2000000) == 1.0


def test_warm_up_reaches_the_full_rate():
    factors = [learning_rate_factor(n, 0.0, schedule="constant", warmup_steps=4) for n in range(6)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_ends_where_it_should():
    def cosine(progress: float) -> float:
        return learning_rate_factor(10**6, progress, schedule="cosine", final=0.1)

    assert cosine(0.0) == 1.0
    assert cosine(0.5) == pytest.approx(0.55)
    assert cosine(1.0) == cosine(1.7) == pytest.approx(0.1)


def test_more_steps_raise_the_rate_again():
    """A run that ended at a rate near 0 and is given more steps must learn again."""
    ended = learning_rate_factor(100, 100 / 100, schedule="cosine")
    extended = learning_rate_factor(100, 100 / 200, schedule="cosine")
    assert ended == 0.0 and extended == pytest.approx(0.5)
