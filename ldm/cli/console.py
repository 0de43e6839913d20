"""The installed commands (sd-txt2img, sd-img2img, sd-train, ...): each runs the script of its name."""

import runpy


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
    runpy.run_module(f"ldm.scripts.{name}", run_name="__main__", alter_sys=True)
