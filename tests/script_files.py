"""The command-line scripts as modules."""

import importlib.util
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
