"""What happens around the steps: the clock, signals, the log, samples, checkpoints."""

import contextlib
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.signals import heeding_signals, stop_asked
from ldm.training.module import TrainingModule
from ldm.training.run_folder import MetricsLog, save_grid
from ldm.training.state import save_state

log = logging.getLogger(__name__)


class Clock:
    """Training time, over resumes.

    Args:
        elapsed_before: seconds that earlier starts have used.
        budget: seconds in total (train.max_time); 0: no limit.
        deadline: seconds for this process (--max-time); 0: no limit.
        started: `time.monotonic()` of the process's start, so that loading counts.
    """

    def __init__(self, elapsed_before: float, budget: float, deadline: float, started: float) -> None:
        self.elapsed_before = elapsed_before
        self.started = started
        limits = [limit for limit in (budget, elapsed_before + deadline if deadline else 0.0) if limit > 0]
        self.end = min(limits) if limits else 0.0  # where training stops
        self.horizon = budget or self.end  # what cosine_by_time looks at

    @property
    def elapsed(self) -> float:
        return self.elapsed_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        return min(1.0, self.elapsed / self.horizon) if self.horizon else 0.0

    @property
    def over(self) -> bool:
        return bool(self.end) and self.elapsed >= self.end


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
        self._stop_if_due(trainer, module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: TrainingModule, batch: Any, batch_idx: int
    ) -> int | None:
        if trainer.should_stop:
            return -1
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
        self._add(module.metrics)
        if module.step % options.log_every == 0:
            self._write_log(trainer, module)
        if options.sample_every and module.step % options.sample_every == 0:
            self._look(trainer, module)
        if module.step % options.save_every == 0:
            self.save(trainer, module)
        self._stop_if_due(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if self._last_saved != module.step:
            self.save(trainer, module)
        if not self.interrupted and self._last_looked != module.step:
            self._look(trainer, module)
        self._draw()
        self.signals.close()

    def on_exception(self, trainer: pl.Trainer, module: TrainingModule, exception: BaseException) -> None:
        self.signals.close()
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
        reason = stop_asked() or ("time" if self.clock.over else "")
        if max_steps and module.step >= max_steps:
            reason = "steps"
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(bool(reason), all=False):
            reason = reason or "SIGTERM on another rank"
        if reason:
            self.stopped_by = reason
            trainer.should_stop = True

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
            # Networks would be compiled again for other batch sizes, which takes minutes.
            with module.autocast(), torch.compiler.set_stance("force_eager"):
                figures = module.evaluate(self.val_data)
                images = module.sample(self.val_data)
            if images is not None:
                save_grid(images, self.folder / "images" / f"{module.step:08d}.png")
            if figures:
                self._log.add({"step": module.step, "seconds": self.clock.elapsed, **figures})
                log.info("step %d  %s", module.step, "  ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            self._draw()
            self._last_logged = (module.step, time.monotonic())
        trainer.strategy.barrier()

    def _draw(self) -> None:
        if self._log is not None:
            self._log.draw(self.folder / "loss.png")

    def _with_clock(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "elapsed": self.clock.elapsed}

    def save(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """Write a checkpoint from rank 0."""
        if trainer.is_global_zero:
            state = self._with_clock(module.state())
            save_state(self.folder / "checkpoints", state, module.train_options.keep)
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
