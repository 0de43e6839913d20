"""The command of scripts/train.py."""

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from ldm.config import load_config
from ldm.errors import InputError
from ldm.training.options import parse_duration

EXIT_STOPPED = 75  # EX_TEMPFAIL: the run is saved and can be resumed with --resume


def run(args: Namespace, started: float) -> None:
    """Train, or with --dry-run print the configuration."""
    config, name = read_config(args)
    deadline = parse_duration(args.max_time)
    if args.dry_run:
        print_config(config)
        return
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:  # only the first process of a run logs information
        import logging

        logging.getLogger("ldm").setLevel(logging.WARNING)
    from ldm.training.fit import train

    result = train(config, Path(args.run or f"runs/{name}"), args.resume, deadline, started)
    if result.interrupted:
        print(f"stopped by {result.stopped_by} after step {result.step}; to resume: --resume {result.folder}")
        sys.exit(EXIT_STOPPED)
    if result.weights is not None:
        print(f"trained {result.step} steps: {result.weights}, {result.folder / 'model.yaml'}", flush=True)


def read_config(args: Namespace) -> tuple[Any, str]:
    """Return the configuration with its overrides, and the name of its file."""
    if args.config is not None:
        return load_config(args.config, args.overrides), Path(args.config).stem
    if args.resume in (None, "auto"):
        raise InputError("--config: missing; expected a YAML file of configs/training")
    folder = Path(args.resume)
    folder = folder.parent if folder.suffix == ".ckpt" else folder
    folder = folder.parent if folder.name == "checkpoints" else folder
    if not (folder / "config.yaml").is_file():
        raise InputError(
            f"--resume {args.resume}: {folder} is not a training run; expected a folder such as runs/NAME, "
            "with the config.yaml that training writes there"
        )
    return load_config(folder / "config.yaml", args.overrides), folder.name


def print_config(config: Any) -> None:
    """Print the configuration with all defaults filled in, and a summary of the training."""
    from omegaconf import OmegaConf

    from ldm.training.fit import describe, plain, resolve_config

    resolved = resolve_config(plain(config))
    print(OmegaConf.to_yaml(OmegaConf.create(resolved)), end="")
    print(f"# {describe(resolved)}")
