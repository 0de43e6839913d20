"""The command-line scripts as modules."""

import importlib.util
import runpy
import sys
from pathlib import Path

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
