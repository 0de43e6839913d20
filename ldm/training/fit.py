"""Assemble a run from its configuration, train, export."""

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from ldm.config import find_class, instantiate, plain
from ldm.errors import ConfigError, LdmError, Stopped, TrainingError
from ldm.signals import Ended
from ldm.training.building import build_data, check_side, precision_of
from ldm.training.callbacks import Clock, Keeper
from ldm.training.exporting import versions
from ldm.training.module import TrainingModule
from ldm.training.options import METHODS, TrainOptions, parse_duration, read_sections, resolve_config
from ldm.training.run_folder import choose_folder, read_durations, write_durations, write_start
from ldm.training.state import has_state, load_state
from ldm.training.stream import BatchStream
from ldm.wording import counted

log = logging.getLogger(__name__)

WHY = {"steps": "train.max_steps is reached", "time": "the time limit is reached"}  # of Result.stopped_by
FOLDER_VARIABLE = "LDM_TRAINING_FOLDER"  # tells the processes of one run its folder


class Result(NamedTuple):
    folder: Path
    step: int
    stopped_by: str  # "steps", "time", or a signal's name
    weights: Path | None  # model.safetensors; None after a signal, and in all processes but the first

    @property
    def interrupted(self) -> bool:
        return self.stopped_by.startswith("SIG")


def build_module(config: dict[str, Any]) -> TrainingModule:
    """Build the model and the method that trains it; weights are drawn from train.seed."""
    method, train, options = read_sections(config)
    torch.manual_seed(train.seed)
    model = instantiate(config["model"], "model")
    return find_class(METHODS[method][1])(model, train, options)


def build_trainer(train: TrainOptions, keeper: Keeper) -> pl.Trainer:
    """Return Lightning's trainer with everything off that this package does itself."""
    from pytorch_lightning.plugins.environments import SLURMEnvironment
    from pytorch_lightning.strategies import DDPStrategy

    # The discriminator and the autoencoder take turns, so each backward leaves some parameters out.
    several = train.devices > 1
    strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False) if several else "auto"
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return pl.Trainer(
        accelerator={"cuda": "gpu"}.get(train.accelerator, train.accelerator),
        devices=train.devices,
        strategy=strategy,
        precision={"bfloat16": "bf16-mixed", "float32": "32-true"}[train.precision],
        max_epochs=-1,
        max_steps=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[keeper],
        plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
    )


def train(
    config: dict[str, Any],
    folder: Path,
    resume: str | None = None,
    deadline: float = 0.0,
    started: float | None = None,
) -> Result:
    """Train what `config` describes, in `folder`.

    Args:
        config: sections as in ldm.training.options, resolved or not.
        resume: None starts a new run, "auto" resumes the newest one if any, else the folder to resume.
        deadline: seconds after which this process ends, 0 for none.
        started: `time.monotonic()` from which the deadline counts.

    Raises:
        TrainingError: a gradient that is not finite, or a tensor that training does not reach.
    """
    started = time.monotonic() if started is None else started
    config = resolve_config(plain(config))
    _, options, _ = read_sections(config)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    folder, resuming = shared_folder(folder, resume)
    state = load_state(folder / "checkpoints") if resuming else None
    before = state["elapsed"] if state else 0.0
    took = read_durations(folder) if state else {}
    clock = Clock(before, parse_duration(options.max_time), deadline, started, took)
    if options.lr_schedule == "cosine_by_time" and not clock.horizon:
        raise ConfigError("train.lr_schedule=cosine_by_time needs --max-time or train.max_time")
    data = build_data(config, "data")
    val_data = build_data(config, "val_data") if "val_data" in config else data
    precision = precision_of(options)
    if precision != options.precision:
        log.info("this CPU would emulate %s slowly: the networks compute in float32", options.precision)
        options.precision = precision
    module = build_module(config | {"train": {**config["train"], "precision": precision}})
    network = getattr(module, "diffusion", getattr(module, "autoencoder", None))
    for section, images in (("data", data), ("val_data", val_data)):
        check_side(network, images, f"{section}.params.size")
    keeper = Keeper(folder, clock, val_data, state)
    trainer = build_trainer(options, keeper)
    if trainer.is_global_zero:
        write_start(folder, config, versions())
    log.info("run folder %s; %s parameters trained", folder, f"{count_trained(module):,}")
    if options.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if state:
        module.step = state["step"]
        module.load_trained_state(state["trained"])
        log.info("resumed at step %d after %.0f s of training", module.step, state["elapsed"])
    module.hurried = lambda: clock.lacks("save", "export")
    source = module.prepare(data, folder, trainer.strategy.root_device)
    stream = BatchStream(
        source, options.batch_size, options.accumulate, options.seed, trainer.global_rank, options.prefetch
    )
    stream.start = module.step
    if options.compile:
        module.compile_networks()
        module.is_compiled = True
    weights = None
    with resumable(folder):
        fit(trainer, module, stream)
        if trainer.is_global_zero and not keeper.interrupted:
            with module.autocast(), clock.timing("export"):
                weights = module.export(folder, config, val_data)
            write_durations(folder, clock.took)
    why = WHY.get(keeper.stopped_by, f"stopped by {keeper.stopped_by}")
    log.info("%s: %s in %.0f s", why, counted(module.step, "step"), clock.elapsed)
    return Result(folder, module.step, keeper.stopped_by, weights)


def export_state(config: dict[str, Any], path: Path) -> Result:
    """Write the model of a state, without training on.

    Args:
        path: the folder of the run, for its newest state, or a file of its checkpoints.

    Raises:
        TrainingError: there is no state.
    """
    config = resolve_config(plain(config))
    folder, _ = choose_folder(path, str(path))
    if not (folder / "checkpoints").is_dir():
        raise TrainingError(f"{folder}: has no checkpoints to make a model of")
    state = load_state(path if path.suffix == ".ckpt" else folder / "checkpoints")
    module = build_module(config)
    module.step = state["step"]
    module.load_trained_state(state["trained"])
    data: Any = None
    try:
        data = build_data(config, "val_data" if "val_data" in config else "data")
    except LdmError as error:
        if not module.exports_without_data:
            raise
        log.warning("the size of the images in training is not known: %s", error)
    return Result(folder, module.step, "export", module.export(folder, config, data))


def fit(trainer: pl.Trainer, module: TrainingModule, stream: BatchStream) -> None:
    """Let Lightning run the steps; it turns an interruption into SystemExit, which is turned back."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        try:
            trainer.fit(module, stream)
        except SystemExit as exit:
            raise exit.__context__ if isinstance(exit.__context__, KeyboardInterrupt) else exit from None


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say how to resume where a signal ends the block at once."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if not has_state(folder / "checkpoints"):
            raise
        if isinstance(interrupt, Ended):
            raise Stopped(f"stopped by {interrupt}; resume with --resume {folder}") from None
        log.warning("the last saved state is in %s; resume with --resume %s", folder / "checkpoints", folder)
        raise


def count_trained(module: TrainingModule) -> int:
    """Return how many numbers the optimizers change."""
    return sum(p.numel() for name in module.groups() for p in module.named_group(name).values())


def shared_folder(folder: Path, resume: str | None) -> tuple[Path, bool]:
    """Choose the run folder once; the other processes of a DDP run read it from the environment."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    if chosen and int(os.environ.get("LOCAL_RANK", 0)) > 0:
        path, resuming = chosen.rsplit("|", 1)
        return Path(path), resuming == "True"
    folder, resuming = choose_folder(folder, resume)
    if resuming and not (folder / "checkpoints").is_dir():
        raise TrainingError(f"{folder}: no checkpoints to resume from")
    os.environ[FOLDER_VARIABLE] = f"{folder}|{resuming}"
    return folder, resuming
