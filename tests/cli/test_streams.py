"""Messages whose reader is gone, and messages without end."""

import argparse
import logging
import os
import subprocess
import sys

import pytest
from script_files import REPOSITORY

from ldm.cli import app, streams
from ldm.cli.progress import bar
from ldm.errors import InputError


def closed_terminal() -> int:
    """Return a file descriptor that answers every write with EIO."""
    master, terminal = os.openpty()
    os.close(master)
    return terminal


def closed_pipe() -> int:
    """Return a file descriptor that answers every write with EPIPE."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.fixture(params=[closed_terminal, closed_pipe])
def gone(request, monkeypatch):
    """Make stdout and stderr those of a process whose reader is gone."""
    opened = []
    for name in ("stdout", "stderr"):
        opened.append(os.fdopen(request.param(), "w", buffering=1))
        monkeypatch.setattr(sys, name, opened[-1])
    yield
    for stream in opened:
        stream.close()  # what was printed must be flushable


def test_nothing_that_is_printed_fails(gone):
    streams.say_at_once("SIGHUP: finishing step 3")
    assert sum(bar(iter(range(3)), 3, "batches")) == 3
    print("x" * 100_000, flush=True)


def test_a_bar_goes_on_where_nobody_reads(gone):
    assert sum(bar(iter(range(3)), 3, "batches")) == 3
    print("done", file=sys.stderr, flush=True)


@pytest.mark.parametrize("error, code", [(InputError("wrong"), 2), (ValueError("defect"), 70)])
def test_the_exit_code_stays(gone, error, code):
    def main(args: argparse.Namespace) -> None:
        logging.getLogger("ldm").warning("a warning")
        raise error

    assert app.exit_code(argparse.ArgumentParser(), main, []) == code


def test_the_exit_code_of_a_process_stays(tmp_path):
    """The interpreter flushes what is left, and would exit with 120."""
    code = (
        "import argparse, sys; from ldm.cli import app\n"
        "def main(args):\n"
        "    print('x', end='')\n"
        "    raise app.Stopped('stopped')\n"
        "app.run(argparse.ArgumentParser(), main, [])"
    )
    writer = closed_pipe()
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=writer, stderr=writer, cwd=REPOSITORY, env=environment)
    os.close(writer)
    assert done.returncode == 75


@pytest.mark.parametrize("text", ["x" * 230_000, "é" * 5_000, "a\nb" * 9_000])
def test_messages_have_an_end(capsys, text):
    def main(args: argparse.Namespace) -> None:
        logging.getLogger("ldm").warning("%s", text)
        raise InputError(text)

    assert app.exit_code(argparse.ArgumentParser(), main, []) == 2
    err = capsys.readouterr().err
    assert len(err) < 5_000 and f"{len(text) - streams.LONGEST} more characters" in err
    assert streams.bounded("short") == "short"
