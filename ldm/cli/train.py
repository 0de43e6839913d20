"""The command of scripts/train.py."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import app
from ldm.cli.parser import Parser, add_messages
from ldm.errors import InputError, Stopped
from ldm.wording import counted

if TYPE_CHECKING:
    from ldm.training.fit import Result


class TrainParser(Parser):
    """A parser that also accepts key=value between the flags."""

    parse_args = Parser.parse_intermixed_args


def make_parser(description: str | None) -> Parser:
    parser = TrainParser(description=description)
    add = parser.add_argument
    file = {"type": os.path.expanduser}
    add("--config", **file, help="training configuration; with --resume RUN, that run's own by default")
    add("--run", **file, help="folder of the run; default runs/NAME, with a number added if it exists")
    add("--resume", **file, metavar="RUN", help='resume the run in this folder; "auto": the newest, if any')
    add(
        "--max-time", default="", metavar="TIME", help="stop after this wall-clock time, seconds or HH:MM:SS"
    )
    add("--export", action="store_true", help="write the model of the state that --resume names, and exit")
    add("--dry-run", action="store_true", help="check data, estimate memory and time, and exit")
    add("--print-config", action="store_true", help="print all settings, with defaults, as YAML, and exit")
    add("overrides", nargs="*", metavar="key=value", help="overrides, such as train.batch_size=8")
    add_messages(parser)
    return parser


def main(description: str | None, argv: Sequence[str] | None = None, started: float | None = None) -> int:
    """Run scripts/train.py: parse the command line, carry it out, and return the exit code.

    Args:
        started: `time.monotonic()` from which --max-time counts; None is now.
    """
    started = time.monotonic() if started is None else started
    return app.exit_code(make_parser(description), lambda args: _train(args, started), argv)


def _train(args: argparse.Namespace, started: float) -> None:
    """Train, or only say what would be done."""
    from ldm.training.options import parse_duration, resolve_config

    config, name = _configuration(args)
    config, deadline = resolve_config(config), parse_duration(args.max_time, "--max-time")
    if args.print_config or args.dry_run:
        _show(config, deadline, args)
        return
    if args.export:
        _export(args, config)
        return
    if int(os.environ.get("LOCAL_RANK", 0)) > 0:  # it would repeat the log of the first process
        import logging

        logging.getLogger("ldm").setLevel(logging.WARNING)
    from ldm.training.fit import train

    result = train(config, Path(args.run or f"runs/{name}"), args.resume, deadline, started)
    if result.interrupted:
        raise Stopped(
            f"stopped by {result.stopped_by} after step {result.step}; resume with --resume {result.folder}"
        )
    if result.weights is not None:
        _say_model(result)


def _export(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Write the model of a state."""
    if args.resume in (None, "auto"):
        raise InputError("--export: needs --resume RUN, the folder of a run or one of its checkpoints")
    from ldm.training.fit import export_state

    done = export_state(config, Path(args.resume))
    _say_model(done)


def _say_model(result: "Result") -> None:
    yaml = result.folder / "model.yaml"
    with_yaml = f", with {yaml}" if yaml.is_file() else ""      # a ControlNet alone has none
    print(f"the model after {counted(result.step, 'step')}: {result.weights}{with_yaml}", flush=True)


def _configuration(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the configuration with its overrides, and the name of its file."""
    from ldm.config import read_config
    from ldm.training.options import SECTION_CLASSES, with_todays_names

    if args.config is not None:
        return read_config(args.config, args.overrides, SECTION_CLASSES), Path(args.config).stem
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
    config = read_config(folder / "config.yaml", args.overrides, SECTION_CLASSES)
    return with_todays_names(config), folder.name


def _show(config: dict[str, Any], deadline: float, args: argparse.Namespace) -> None:
    """Print a resolved configuration as YAML, what training with it would do, or both."""
    if args.print_config:
        from ldm.yaml_file import to_yaml

        print(to_yaml(config), end="", flush=True)
    if args.dry_run:
        from ldm.training.estimate import describe

        for line in describe(config, deadline):
            print(f"# {line}" if args.print_config else line, flush=True)
