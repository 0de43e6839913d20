"""The installed commands (sd-txt2img, sd-img2img, sd-train, ...): each runs the script of its name."""

import importlib.util
import runpy
from pathlib import Path


def txt2img() -> None:
    _run("txt2img")


def img2img() -> None:
    _run("img2img")


def train() -> None:
    _run("train")


def convert() -> None:
    _run("convert")


def merge() -> None:
    _run("merge")


def identify() -> None:
    _run("identify")


def _run(name: str) -> None:
    if importlib.util.find_spec("ldm.scripts"):
        runpy.run_module(f"ldm.scripts.{name}", run_name="__main__", alter_sys=True)
    else:   # an editable installation, whose scripts are those of the checkout
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / f"{name}.py"), run_name="__main__")
