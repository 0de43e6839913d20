"""The command-line scripts, run in this process."""

import runpy
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


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
