"""The command-line scripts as modules."""

import importlib.util
import runpy
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from unittest.mock import patch

REPOSITORY = Path(__file__).parents[1]


def load_script(name: str):
    """Import scripts/NAME.py, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"scripts_{Path(name).stem}", REPOSITORY / "scripts" / name)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


def run_script(name: str, *args: object) -> int:
    """Run scripts/NAME.py with a command line in this process and return its exit code."""
    script = str(REPOSITORY / "scripts" / name)
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *map(str, args)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv, sys.path[:] = argv, path
    raise AssertionError(f"{name} did not end with an exit code")


class _Parsed(BaseException):
    """Carries what a script has parsed past its `except Exception`."""


def parsed_by_script(name: str, *args: str) -> Namespace:
    """Return what scripts/NAME.py parses of a command line, which is not carried out.

    Raises: InputError where the script would refuse it.
    """

    def stop(parser: ArgumentParser, main: object, argv: list[str] | None = None) -> None:
        raise _Parsed(parser.parse_args(argv))

    module = load_script(name)
    if hasattr(module, "parse_arguments"):
        return module.parse_arguments(list(args))
    with patch("ldm.cli.app.exit_code", stop):
        try:
            run_script(name, *args)
        except _Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f"{name} did not parse its command line")
