"""The installed commands (sd-txt2img, sd-inpaint, sd-train, ...): each runs the script of the same name."""

import importlib.util
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ldm import wording


def __getattr__(name: str) -> Callable[[], None]:
    """Return a function that runs scripts/NAME.py; setup.py installs a command for every script."""
    if name.startswith("_"):
        raise AttributeError(name)
    return partial(_run, name)


def _run(name: str) -> None:
    wording.by_command = True
    if importlib.util.find_spec("ldm.scripts"):
        runpy.run_module(f"ldm.scripts.{name}", run_name="__main__", alter_sys=True)
    else:  # an editable installation uses the scripts of the checkout
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / f"{name}.py"), run_name="__main__")
