"""The README's commands: every one parses, and those marked `<!-- runs -->` run as they stand.

Commands run in a folder with nothing but `configs/`: `python scripts/...` means this checkout's.
"""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [*DOCUMENTS, *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?P<runs><!-- runs -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


def blocks(language: str, *, runs: bool = False) -> list[str]:
    """Return the fenced blocks of a language; with `runs` only those marked to be run."""
    found = [match for path in DOCUMENTS for match in BLOCK.finditer(path.read_text())]
    return [m["code"] for m in found if m["language"] == language and (m["runs"] or not runs)]


def commands(code: str) -> list[list[str]]:
    """Split a shell block into commands, without comments."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def script_commands() -> list[list[str]]:
    every = [command for code in blocks("bash") for command in commands(code)]
    return [command for command in every if len(command) > 1 and command[1].startswith("scripts/")]


def parse(script: Path, arguments: list[str]) -> Namespace:
    """Parse arguments as the script does."""
    spec = importlib.util.spec_from_file_location(f"readme_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "parse_arguments"):
        return module.parse_arguments(arguments)
    return module.make_parser().parse_args(arguments)


@pytest.mark.parametrize("command", script_commands(), ids=shlex.join)
def test_the_script_takes_these_flags(command: list[str], monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    args = parse(ROOT / command[1], command[2:])
    config = getattr(args, "config", None)
    if config and config.startswith("configs/"):
        assert (ROOT / config).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("bash", runs=True))
def test_the_block_runs(code: str, tmp_path: Path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    code = code.replace("python scripts/", f"python {shlex.quote(str(ROOT))}/scripts/")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert [file for file in tmp_path.rglob("*.png") if "configs" not in file.parts], "it made a picture"


@pytest.mark.parametrize("code", blocks("python", runs=True))
def test_the_python_block_runs(code: str, tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert list(tmp_path.rglob("*.png")), "it made a picture"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_is_linked_and_named_is_there(path: Path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith(("http:", "https:")):
            assert (path.parent / target).exists(), target
    for name in re.findall(r"`((?:ldm|scripts|configs|tests|docs|benchmarks)/[\w./-]+)`", text):
        if name != "ldm/adapters/":  # the place of what is to come
            assert (ROOT / name).exists(), name


def test_there_is_something_to_run():
    assert script_commands() and blocks("bash", runs=True) and blocks("python", runs=True)
