"""What every training method shares: seeding, accumulation, clipping, self-check, schedule, saved state.

A method is a subclass with its networks, its groups of trained parameters, and `backward(batch)`. Optimizer
steps are taken here, by hand, because a run may have two optimizers and because only here is "step" one
well-defined number: Lightning's own counter counts the steps of all optimizers together.
"""

import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.errors import TrainingError, is_out_of_memory
from ldm.training.ema import LitEma
from ldm.training.lr_scheduler import learning_rate_factor
from ldm.training.options import TrainOptions
from ldm.training.run_folder import Shown
from ldm.training.seeding import draw_seed
from ldm.training.self_check import SelfCheck, named

log = logging.getLogger(__name__)


class TrainingModule(pl.LightningModule):
    """Base of the methods.

    Attributes:
        step: optimizer steps taken, over resumes.
        progress: 0..1 of the time limit, set by the clock callback; used by `cosine_by_time`.
        metrics: figures of the last step, as tensors or floats.
        hurried: tells `evaluate` and `sample` to return what they have, because training has to end.
        images_shown, images_at_export: how many images the networks compute for these.
    """

    automatic_optimization = False
    exports_without_data = True

    def __init__(self, train: TrainOptions) -> None:
        super().__init__()
        self.train_options = train
        self.step = 0
        self.progress = 0.0
        self.metrics: dict[str, Any] = {}
        self.hurried: Callable[[], bool] = lambda: False
        self.is_compiled = False
        self._micro_batches: list[dict[str, Any]] = []  # of this step, while networks are compiled
        self.images_shown = self.images_at_export = 0
        self._checks: dict[str, SelfCheck] = {}

    # What a method fills in

    @abstractmethod
    def groups(self) -> dict[str, nn.Module]:
        """Return what each optimizer trains, by name."""

    @abstractmethod
    def backward_losses(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute the losses of a micro-batch, call `loss_backward` on them, and return figures to log."""

    def active_groups(self) -> list[str]:
        """Return the names of the groups that this step trains."""
        return list(self.groups())

    def may_rest(self) -> dict[str, str]:
        """Return parts of names of tensors whose gradient may rightly be zero at first -> why."""
        return {}

    def after_step(self) -> None:
        """Do what follows an optimizer step, such as averaging weights."""

    def compile_networks(self) -> None:
        """Have torch.compile translate the networks that training spends its time in."""

    def prepare(self, data: Any, run_folder: Path, device: torch.device) -> Any:
        """Do what comes before the first step, such as filling caches; return the data to train on."""
        return data

    def evaluate(self, data: Any) -> dict[str, float]:
        """Return figures on `data` that do not depend on the training's random numbers."""
        return {}

    def sample(self, data: Any) -> Shown | None:
        """Return images for the grid, or None."""
        return None

    @abstractmethod
    def trained_modules(self) -> dict[str, nn.Module | None]:
        """Return what training changes, by its name in checkpoints; None for what this run does without."""

    @abstractmethod
    def export(self, folder: Path, config: dict[str, Any], data: Any | None) -> Path:
        """Write the result in the reference layout and the YAML that loads it; return the weights' path."""

    def autocast(self) -> AbstractContextManager:
        """Return the context in which networks compute outside of training steps."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.train_options.precision == "bfloat16"
        )

    # Optimizers

    def named_group(self, name: str) -> dict[str, nn.Parameter]:
        """Return the trainable parameters of a group by their names."""
        entries = self.groups()[name].named_parameters()
        return {f"{name}.{key}": parameter for key, parameter in entries if parameter.requires_grad}

    def group_learning_rate(self, name: str) -> float:
        return self.train_options.learning_rate

    def make_optimizer(self, name: str) -> torch.optim.Optimizer:
        """Return the optimizer of a group: AdamW unless the method says otherwise."""
        options = self.train_options
        return torch.optim.AdamW(
            self.named_group(name).values(),
            lr=self.group_learning_rate(name),
            betas=tuple(options.betas),
            weight_decay=options.weight_decay,
        )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.make_optimizer(name) for name in self.groups()]

    def optimizer_of(self, name: str) -> Any:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        return optimizers[list(self.groups()).index(name)]

    # One step

    def learning_rate_now(self) -> float:
        """Return the factor on the learning rate at this step."""
        options = self.train_options
        by_steps = self.step / options.max_steps if options.max_steps else 0.0
        return learning_rate_factor(
            self.step,
            self.progress if options.lr_schedule == "cosine_by_time" else by_steps,
            schedule=options.lr_schedule,
            warmup_steps=options.warmup_steps,
            final=options.lr_final,
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Add the gradient of a micro-batch; after the last one of a step, let the optimizers step."""
        options = self.train_options
        if batch["step"] != self.step:
            raise TrainingError(f"data of step {batch['step']} came in step {self.step}")
        try:
            figures = self._add_gradient(batch)
        except Exception as error:
            if not self.is_compiled or not is_of_compiler(error):
                raise
            self._go_on_uncompiled(error)
            for again in self._micro_batches:
                figures = self._add_gradient(again)
        if batch["micro"] == options.accumulate - 1:
            self.metrics = {**figures, **self.step_optimizers()}
            self.step += 1
            self.after_step()

    def _add_gradient(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.is_compiled and batch["micro"] == 0:
            self._micro_batches = []
        if self.is_compiled:
            self._micro_batches.append(batch)
        where = "step", self.step, batch["micro"], self.global_rank
        torch.manual_seed(draw_seed(self.train_options.seed, *where))
        return self.backward_losses(batch)

    def _go_on_uncompiled(self, error: Exception) -> None:
        """Forget the compiled networks, and the gradients of this step, which may be incomplete."""
        log.warning("the networks cannot be compiled (%s); training goes on uncompiled", first_error(error))
        self.is_compiled = False
        for module in self.modules():
            module._compiled_call_impl = None
        for name in self.groups():
            self.optimizer_of(name).zero_grad(set_to_none=True)

    def loss_backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's share of the loss."""
        self.manual_backward(loss / self.train_options.accumulate)

    def step_optimizers(self) -> dict[str, float]:
        """Check the gradients, clip them, and step; returns learning rate and gradient norms.

        Raises:
            TrainingError: a gradient is not finite. The weights are then still those of the last good step.
        """
        options = self.train_options
        factor = self.learning_rate_now()
        figures: dict[str, float] = {}
        for name in self.active_groups():
            parameters = self.named_group(name)
            limit = options.grad_clip if options.grad_clip > 0 else float("inf")
            norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), limit))
            if not norm < float("inf"):
                bad = [
                    key for key, p in parameters.items() if p.grad is not None and not p.grad.isfinite().all()
                ]
                raise TrainingError(
                    f"step {self.step}: the gradient of {named(bad) or name} is not finite; the last good "
                    "state is saved: lower train.learning_rate, or set train.precision=float32"
                )
            figures[f"grad_norm_{name}"] = norm
        for name in self.active_groups():
            figures[f"lr_{name}"] = self._step_group(name, factor)
        return figures

    def _step_group(self, name: str, factor: float) -> float:
        optimizer = self.optimizer_of(name)
        rate = factor * self.group_learning_rate(name)
        for group in optimizer.param_groups:
            group["lr"] = rate
        check = self._self_check(name)
        if not check.done:
            check.before_step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not check.done:
            check.after_step()
        return rate

    def _self_check(self, name: str) -> SelfCheck:
        """Return the group's check; it begins with the group's first step, and not again after a resume."""
        if name not in self._checks:
            options = self.train_options
            fresh = not self.optimizer_of(name).state
            steps = options.self_check_steps if fresh else 0
            allow = self.may_rest() | options.self_check_allow
            self._checks[name] = SelfCheck(self.named_group(name), steps, allow)
        return self._checks[name]

    # State

    def trained_state(self) -> dict[str, Any]:
        """Return everything that training changes, as tensors and plain values."""
        modules = self.trained_modules().items()
        return {name: module.state_dict() for name, module in modules if module is not None}

    def load_trained_state(self, state: dict[str, Any]) -> None:
        """Take back what `trained_state` returned."""
        for name, module in self.trained_modules().items():
            if module is not None:
                module.load_state_dict(state[name])

    def state(self) -> dict[str, Any]:
        """Return the complete state of the run, without the clock."""
        optimizers = {name: self.optimizer_of(name).optimizer.state_dict() for name in self.groups()}
        return {"step": self.step, "trained": self.trained_state(), "optimizers": optimizers}

    def load_optimizers(self, state: dict[str, Any]) -> None:
        """Take back the optimizers' part of `state()`; call it when the optimizers exist."""
        for name in self.groups():
            self.optimizer_of(name).optimizer.load_state_dict(state["optimizers"][name])


def averaged(ema: LitEma | None, model: nn.Module) -> AbstractContextManager:
    """Return a context in which `model` holds the EMA weights, if there are any."""
    return nullcontext() if ema is None else ema.applied_to(model)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block with `model` in evaluation mode, and put it back to training."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def is_of_compiler(error: BaseException | None) -> bool:
    """Tell whether torch.compile or what it calls has failed, not the network itself."""
    if error is None or (isinstance(error, Exception) and is_out_of_memory(error)):
        return False
    packages = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
    return type(error).__module__.startswith(packages) or is_of_compiler(error.__cause__)


def first_error(error: Exception) -> str:
    """Return the first line of a compiler's output that is an error, without the path before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    found = (match[0] for line in lines if (match := re.search(r"\b(fatal )?error: .*", line)))
    return next(found, lines[0])[:200]
