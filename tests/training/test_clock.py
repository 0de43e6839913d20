"""Time limits hold with saving, validation and export in them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldm import signals
from ldm.errors import TrainingError
from ldm.training import callbacks
from ldm.training.cache import build_cache
from ldm.training.callbacks import LEAVING, SAFETY, Clock, Keeper
from ldm.training.options import TrainOptions
from ldm.training.run_folder import read_durations, write_durations


class Time:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Module(SimpleNamespace):
    """Stands in for a TrainingModule, whose parts take the given seconds."""

    def __init__(self, time: Time, takes: dict[str, float], **options) -> None:
        super().__init__(step=0, metrics={}, images_shown=0, images_at_export=0, is_compiled=False)
        self.time, self.takes = time, takes
        self.train_options = TrainOptions(sample_every=5, log_every=1000, **options)
        self.network = nn.Linear(2, 2)

    def parameters(self):
        return self.network.parameters()

    def take(self, part: str) -> None:
        self.time.seconds += self.takes[part]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Run the keeper's hooks around steps: trained({"step": 1, ...}, limit) -> seconds, parts in order."""

    def run(takes: dict[str, float], limit: float, took=None, **options) -> tuple[float, list[str]]:
        time, parts = Time(), []
        module = Module(time, takes, **options)
        clock = Clock(0.0, 0.0, limit, 0.0, took, time)
        keeper = Keeper(tmp_path, clock, None, None)
        strategy = SimpleNamespace(barrier=lambda: None)
        trainer = SimpleNamespace(should_stop=False, is_global_zero=False, world_size=1, strategy=strategy)

        def part(name):
            def work(*_):
                parts.append(f"{name} {module.step}")
                module.take(name)

            return work

        monkeypatch.setattr(keeper, "_write_look", part("look"))
        monkeypatch.setattr(callbacks, "save_state", part("save"))
        monkeypatch.setattr(keeper, "_with_clock", lambda state: state)
        module.state = dict
        keeper.on_train_start(trainer, module)
        trainer.is_global_zero = True
        while not trainer.should_stop:
            keeper.on_train_batch_start(trainer, module, {"micro": 0}, 0)
            module.take("step")
            module.step += 1
            keeper.on_train_batch_end(trainer, module, None, {"micro": 0}, 0)
        keeper.on_train_end(trainer, module)
        assert keeper.stopped_by == "time"
        with clock.timing("export"):
            part("export")()
        return time.seconds, parts

    return run


@pytest.mark.parametrize("takes", [
    {"step": 1, "save": 3, "look": 20, "export": 10},
    {"step": 7, "save": 0.1, "look": 40, "export": 0.5},
    {"step": 0.25, "save": 15, "look": 1, "export": 25},
])  # fmt: skip
@pytest.mark.parametrize("limit", [60, 100, 333])
def test_a_resumed_run_ends_in_time(trained, takes, limit):
    """With durations of the run's earlier start, nothing is cut off and little time is wasted."""
    seconds, parts = trained(takes, limit, took=takes, save_every=20)
    assert seconds <= limit
    assert parts[-1].startswith("export"), "the model is there"
    assert parts[-2].startswith(("save", "look")) and any(part.startswith("save") for part in parts)
    least = limit - LEAVING - SAFETY * sum(takes.values()) - takes["look"] - takes["step"]
    assert seconds >= least


def test_a_first_start_learns_in_time(trained):
    takes = {"step": 1, "save": 4, "look": 30, "export": 1}
    seconds, parts = trained(takes, 120, save_every=20)
    assert seconds <= 120 and "look 5" in parts
    seconds, parts = trained(takes, 30, save_every=20)
    assert parts[-1].startswith("export")


def test_validation_is_left_out_where_it_does_not_fit(trained):
    takes = {"step": 1, "save": 1, "look": 50, "export": 1}
    seconds, parts = trained(takes, 40, took=takes, save_every=20)
    assert seconds <= 40 and not any(part.startswith("look") for part in parts)


def test_a_slow_first_step_is_not_expected_for_ever(trained):
    """Networks are compiled in it."""
    seconds, parts = trained({"step": 1, "save": 1, "look": 1, "export": 1}, 100, took={"step": 60})
    assert 80 < seconds <= 100


def test_a_limit_that_is_over_before_the_first_step_still_gives_a_model(trained):
    seconds, parts = trained({"step": 9, "save": 9, "look": 9, "export": 9}, 0.01)
    assert parts == ["export 0"] or parts == ["save 0", "export 0"]


def test_limits_hold_over_resumes():
    time = Time()
    assert Clock(100.0, 150.0, 0.0, 0.0, now=time).end == 150.0
    assert Clock(100.0, 150.0, 20.0, 0.0, now=time).end == 120.0
    assert Clock(100.0, 0.0, 20.0, 0.0, now=time).end == 120.0
    assert not Clock(100.0, 0.0, 0.0, 0.0, now=time).lacks("save")
    clock = Clock(100.0, 200.0, 0.0, 0.0, {"save": 8.0, "export": 8.0}, time)
    time.seconds = 100.0 - LEAVING - SAFETY * 16
    assert clock.progress == 1.0 and clock.lacks("save", "export"), "the rate is down when training ends"


def test_durations_are_kept_in_the_run_folder(tmp_path):
    assert read_durations(tmp_path) == {}
    write_durations(tmp_path, {"save": 1.25, "look": 3})
    assert read_durations(tmp_path) == {"save": 1.25, "look": 3.0}
    for text in ("{", "[1]", '{"save": "x"}', "null", ""):
        (tmp_path / "durations.json").write_text(text)
        assert read_durations(tmp_path) == {}


def test_the_size_of_the_files_and_the_speed_are_estimates_until_they_are_measured():
    time = Time()
    clock = Clock(0.0, 0.0, 100.0, 0.0, now=time)
    keeper = Keeper(None, clock, None, None)
    module = Module(time, {}, batch_size=4, accumulate=2)
    module.is_compiled = True
    module.images_shown, module.images_at_export = 80, 16
    module.network = nn.Linear(1000, 25_000)
    keeper._steps.extend([60.0])
    keeper._expect(module)
    assert clock.expected["look"] == 0.0, "the first step is not typical"
    keeper._steps.append(4.0)
    keeper._expect(module)
    assert clock.expected["look"] == 20.0
    assert clock.expected["save"] == pytest.approx(4.0, rel=0.01)
    assert clock.expected["export"] == pytest.approx(4.0 + 1.0, rel=0.01)
    with clock.timing("save"):
        time.seconds += 1.0
    assert clock.reserve("save") == LEAVING + SAFETY


def test_encoding_ends_at_the_limit(monkeypatch):
    from demo.discs import Discs

    left = iter([False, False, True])
    with pytest.raises(TrainingError, match=r"64 of 320 .*cache_latents"):
        encode = lambda x: torch.zeros(len(x), 8, 2, 2)  # noqa: E731
        build_cache(Discs(16), 320, encode, None, 0, 0, hurried=lambda: next(left))


def test_a_signal_is_a_hurry():
    keeper = Keeper(None, Clock(0.0, 0.0, 0.0, 0.0), None, None)
    assert not keeper._hurried()
    with signals.heeding_signals():
        signals._asked.append("SIGTERM")
        assert keeper._hurried()
