"""Run the scripts as a user does: in this process where that will do, else in their own, without network."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from script_files import REPOSITORY, load_script

OFFLINE = REPOSITORY / "tests" / "cli" / "offline.py"


@dataclass
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard():
    """Undo what a shell does to jobs in the background, whose children inherit it: SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path) -> Callable[..., Outcome]:
    """Run a script in this process, in an empty folder: run("txt2img.py", "--seed", 1)."""
    from ldm.cli import app

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(script: str, *args: object) -> Outcome:
        module = load_script(script)
        capsys.readouterr()
        code = app.exit_code(module.make_parser(), module.main, [str(arg) for arg in args])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def run_alone(tmp_path) -> Callable[..., Outcome]:
    """Run a script in a process of its own whose sockets refuse to connect, in an empty folder."""

    def run(script: str, *args: object, python_args: tuple[str, ...] = ()) -> Outcome:
        command = [sys.executable, *python_args, str(OFFLINE), str(REPOSITORY / "scripts" / script)]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path.parent / "cache"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, *(str(arg) for arg in args)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run
