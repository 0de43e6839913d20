"""What happens around the steps: the clock, signals, the log, samples, checkpoints."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.signals import doing, heeding_signals, stop_asked
from ldm.training.module import TrainingModule
from ldm.training.run_folder import MetricsLog, save_grid, write_durations
from ldm.training.state import save_state

log = logging.getLogger(__name__)

SAFETY, LEAVING = 1.25, 2.0  # factor on what a part took before; seconds after the last of them
DISK = 100e6  # bytes a second, until it is measured
WITHOUT_GRADIENT = 0.5  # of the time of a training step
STEPS_SEEN = 10  # the slowest of them is expected again


class Clock:
    """Training time, over resumes, and what of it ending a run will take.

    Args:
        elapsed_before: seconds that earlier starts have used.
        budget: seconds in total (train.max_time); 0: no limit.
        deadline: seconds for this process (--max-time); 0: no limit.
        started: `now()` of the process's start, so that loading counts.
        took: seconds that "step", "save", "look" and "export" took before.
        now: the clock that is read.

    Attributes:
        expected: seconds for the parts that have not been measured yet.
    """

    def __init__(
        self,
        elapsed_before: float,
        budget: float,
        deadline: float,
        started: float,
        took: dict[str, float] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.elapsed_before = elapsed_before
        self.started = started
        self.took = dict(took or {})
        self.expected: dict[str, float] = {}
        self.now = now
        limits = [limit for limit in (budget, elapsed_before + deadline if deadline else 0.0) if limit > 0]
        self.end = min(limits) if limits else 0.0  # where the process ends
        self.horizon = budget or self.end  # what cosine_by_time looks at

    @property
    def elapsed(self) -> float:
        return self.elapsed_before + self.now() - self.started

    @property
    def progress(self) -> float:
        last_step = max(self.horizon - self.reserve("step", "save", "export"), 1e-9)
        return min(1.0, self.elapsed / last_step) if self.horizon else 0.0

    def reserve(self, *parts: str) -> float:
        """Return the seconds that these parts and leaving the process may take."""
        return LEAVING + SAFETY * sum((self.expected | self.took).get(part, 0.0) for part in parts)

    def lacks(self, *parts: str) -> bool:
        """Return whether the time that is left is too short for these parts, in sequence."""
        return bool(self.end) and self.elapsed + self.reserve(*parts) >= self.end

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Remember what the block takes."""
        started = self.now()
        yield
        self.took[part] = self.now() - started


class Keeper(pl.Callback):
    """Logs, samples, saves and stops a TrainingModule.

    Attributes:
        stopped_by: why training ended: "steps", "time" or a signal's name.
    """

    def __init__(self, folder: Path, clock: Clock, val_data: Any, resumed: dict[str, Any] | None) -> None:
        self.folder = folder
        self.clock = clock
        self.val_data = val_data
        self.resumed = resumed
        self.signals = contextlib.ExitStack()
        self.stopped_by = ""
        self._sums: dict[str, tuple[Tensor | float, int]] = {}
        self._last_logged = (0, 0.0)
        self._last_saved = self._last_looked = -1
        self._log: MetricsLog | None = None
        self._steps: deque[float] = deque(maxlen=STEPS_SEEN)
        self._step_started = 0.0

    # Lightning's hooks

    def on_train_start(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if self.resumed is not None:
            module.load_optimizers(self.resumed)
            self.resumed = None
        if trainer.is_global_zero:
            self._log = MetricsLog(self.folder / "metrics.csv", module.step)
        self.signals.enter_context(heeding_signals())
        self._last_logged = (module.step, time.monotonic())
        self._last_saved = module.step
        module.hurried = self._hurried
        self._expect(module)
        self._stop_if_due(trainer, module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: TrainingModule, batch: Any, batch_idx: int
    ) -> int | None:
        if trainer.should_stop:
            return -1
        if batch["micro"] == 0:
            self._step_started = self.clock.now()
            doing(f"step {module.step + 1}")
        if module.train_options.lr_schedule == "cosine_by_time":
            # One clock for all ranks: their weights must stay equal.
            progress = torch.tensor(self.clock.progress, device=module.device)
            module.progress = float(trainer.strategy.reduce(progress, reduce_op="mean"))
        return None

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        options = module.train_options
        if batch["micro"] != options.accumulate - 1:
            return
        self._steps.append(self.clock.now() - self._step_started)
        self.clock.took["step"] = max(self._steps)
        self._expect(module)
        self._add(module.metrics)
        if module.step % options.log_every == 0:
            self._write_log(trainer, module)
        if module.step % options.save_every == 0:
            self.save(trainer, module)
        if options.sample_every and module.step % options.sample_every == 0:
            self._look(trainer, module)
        self._stop_if_due(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if self._last_saved != module.step:
            self.save(trainer, module)
        if not self.interrupted and self._last_looked != module.step:
            self._look(trainer, module)
            self.stopped_by = stop_asked() or self.stopped_by
        self._draw()
        self.signals.close()

    def on_exception(self, trainer: pl.Trainer, module: TrainingModule, exception: BaseException) -> None:
        self.signals.close()
        if isinstance(exception, KeyboardInterrupt):  # anywhere, within the optimizer's step too
            return
        state = module.state() if trainer.optimizers else None
        if state and state["step"] > self._last_saved and finite(state) and trainer.is_global_zero:
            save_state(self.folder / "checkpoints", self._with_clock(state), module.train_options.keep)
        self._draw()

    # Parts

    @property
    def interrupted(self) -> bool:
        return self.stopped_by.startswith("SIG")

    def _stop_if_due(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        max_steps = module.train_options.max_steps
        reason = stop_asked() or ("time" if self.clock.lacks("step", "save", "export") else "")
        if max_steps and module.step >= max_steps:
            reason = "steps"
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(bool(reason), all=False):
            reason = reason or "SIGTERM on another rank"
        if reason:
            self.stopped_by = reason
            trainer.should_stop = True

    def _expect(self, module: TrainingModule) -> None:
        """Estimate what has not been measured: from the sizes of the files, and from the speed of training.

        The first step is not typical where networks are compiled in it.
        """
        options = module.train_options
        is_typical = len(self._steps) > 1 or not module.is_compiled
        step = min(self._steps, default=0.0) if is_typical else 0.0
        image = WITHOUT_GRADIENT * step / (options.batch_size * options.accumulate)
        size = sum(x.numel() * x.element_size() for x in module.parameters())
        self.clock.expected = {
            "save": 4 * size / DISK,  # with the EMA weights and Adam's moments
            "look": module.images_shown * image,
            "export": size / DISK + module.images_at_export * image,
        }

    def _hurried(self) -> bool:
        """Return whether validation and samples have to be left, for a signal or for lack of time."""
        return bool(stop_asked()) or self.clock.lacks("save", "export")

    def _add(self, metrics: dict[str, Any]) -> None:
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def _write_log(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        means = {name: float(total) / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        if self._log is None:
            return
        options, now = module.train_options, time.monotonic()
        step, then = self._last_logged
        images = (module.step - step) * options.batch_size * options.accumulate * trainer.world_size
        row = {"step": module.step, "seconds": self.clock.elapsed, "images_per_second": images / (now - then)}
        self._last_logged = (module.step, now)
        self._log.add({**row, **means})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        log.info(
            "step %d  %s  %.1f images/s  %s",
            module.step,
            hms(self.clock.elapsed),
            row["images_per_second"],
            shown,
        )

    def _look(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write a sample grid and the validation figures; training's random numbers are not touched."""
        self._last_looked = module.step
        if trainer.is_global_zero:
            if self.clock.lacks("look", "save", "export"):
                log.info("step %d  no time is left for validation and samples", module.step)
            else:
                doing(f"the validation of step {module.step}")
                before = self.clock.took.get("look")
                with self.clock.timing("look"):
                    self._write_look(module)
                if self._hurried() and before is not None:
                    self.clock.took["look"] = before
            self._draw()
            self._last_logged = (module.step, time.monotonic())
        trainer.strategy.barrier()

    def _write_look(self, module: TrainingModule) -> None:
        # Networks would be compiled again for other batch sizes, which takes minutes.
        with module.autocast(), torch.compiler.set_stance("force_eager"):
            figures = module.evaluate(self.val_data)
            shown = None if self._hurried() else module.sample(self.val_data)
        if shown is not None:
            save_grid(shown, self.folder / "images" / f"{module.step:08d}.png")
        if figures:
            self._log.add({"step": module.step, "seconds": self.clock.elapsed, **figures})
            log.info("step %d  %s", module.step, "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))

    def _draw(self) -> None:
        if self._log is not None:
            self._log.draw(self.folder / "loss.png")

    def _with_clock(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "elapsed": self.clock.elapsed}

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write a checkpoint from rank 0."""
        if trainer.is_global_zero:
            doing(f"saving step {module.step}")
            with self.clock.timing("save"):
                state = self._with_clock(module.state())
                save_state(self.folder / "checkpoints", state, module.train_options.keep)
            write_durations(self.folder, self.clock.took)
        self._last_saved = module.step
        trainer.strategy.barrier()


def finite(value: Any) -> bool:
    """Tell whether every tensor in nested dicts and lists is finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, dict):
        return all(finite(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return all(finite(entry) for entry in value)
    return True


def hms(seconds: float) -> str:
    """Return HH:MM:SS."""
    return f"{int(seconds) // 3600:02d}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"
