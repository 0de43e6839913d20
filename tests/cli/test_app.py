"""Failures become one line and an exit code."""

import errno
import io
import logging

import pytest

from ldm.cli import app
from ldm.cli.parser import Parser, add_messages
from ldm.cli.progress import Bars, bar
from ldm.errors import CheckpointError, InputError


def outcome(capsys, error: BaseException | None, *argv: str):
    def main(args):
        if error is not None:
            raise error

    parser = Parser()
    add_messages(parser)
    return app.exit_code(parser, main, list(argv)), *capsys.readouterr()


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("--seed is -1"), 2, "error: --seed is -1"),
        (CheckpointError("two\nlines\x1b[2J"), 2, "error: two lines [2J"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), 2, "error: No such file: a.png"),
        (OSError(errno.ENOSPC, "No space left on device"), 5, "error: No space left on device"),
        (MemoryError("1 TB"), 6, "error: out of memory: 1 TB; use a smaller"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 6, "error: out of memory: Default"),
        (RuntimeError("MPS backend out of memory"), 6, "error: out of memory: MPS"),
        (RuntimeError("mat1 and mat2"), 70, "error: internal error: RuntimeError: mat1"),
        (ModuleNotFoundError("No module named 'torch'"), 2, "error: No module named 'torch'; install"),
        (KeyError("x"), 70, "error: internal error: KeyError: 'x'; please run again with --debug"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_failure_is_one_line_and_a_code(capsys, error, code, line):
    got, out, err = outcome(capsys, error)
    assert got == code and out == ""
    assert err.startswith(line) and err.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    code, _, err = outcome(capsys, InputError("broken"), "--debug")
    assert code == 2 and "Traceback" in err and err.endswith("error: broken\n")


def test_success_is_zero_and_silent(capsys):
    assert outcome(capsys, None) == (0, "", "")


def test_a_wrong_flag_is_one_line(capsys):
    code, _, err = outcome(capsys, None, "--nonsense")
    assert code == 2 and err.count("\n") == 1 and "--nonsense" in err


def test_information_goes_to_stdout_and_warnings_to_stderr(capsys):
    app.set_up_logging()
    logging.getLogger("ldm.somewhere").info("loaded")
    logging.getLogger("ldm.somewhere").warning("careful")
    assert tuple(capsys.readouterr()) == ("loaded\n", "warning: careful\n")


def test_a_message_under_a_progress_bar_has_a_line_of_its_own(capsys):
    app.set_up_logging()
    for _ in bar([1], 1, "batches"):
        logging.getLogger("ldm.somewhere").warning("careful")
        logging.getLogger("ldm.somewhere").info("by the way")
    out, err = capsys.readouterr()
    assert out == "by the way\n" and "warning: careful" in err.splitlines(), repr(err)
    assert "batches: 100%" in err.splitlines()[-1]


def test_quiet_leaves_warnings(capsys):
    app.set_up_logging(quiet=True)
    logging.getLogger("ldm.somewhere").info("loaded")
    logging.getLogger("ldm.somewhere").warning("careful")
    assert tuple(capsys.readouterr()) == ("", "warning: careful\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_stream_of_any_encoding_takes_any_text(monkeypatch, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)

    def main(args):
        print("é 灯 \udce8")
        logging.getLogger("ldm.x").info("saved 灯.png")
        raise InputError("no file 灯\udce8.png")

    parser = Parser()
    assert app.exit_code(parser, main, []) == 2
    out.flush()
    lamp = "灯" if encoding == "utf-8" else "\\u706f"
    written = out.buffer.getvalue().decode(encoding)
    assert written.splitlines()[1] == f"saved {lamp}.png" and "\\udce8" in written
    assert err.buffer.getvalue().decode(encoding) == f"error: no file {lamp}\\udce8.png\n"


def test_a_closed_terminal_costs_only_its_messages(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("sys.stdout", Closed())
    monkeypatch.setattr("sys.stderr", Closed())
    done = []

    def main(args):
        logging.getLogger("ldm.x").warning("lost")
        done.append(True)
        raise InputError("lost too")

    assert app.exit_code(Parser(), main, []) == 2 and done


@pytest.mark.parametrize("passes", [(4,), (4, 2), (2, 4), (0,), ()], ids=str)
def test_without_a_terminal_one_bar_counts_the_steps_of_all_batches(capsys, passes):
    bars, seen = Bars(), []

    def batches():
        for _ in range(3):
            for steps in passes:
                for _ in bars.steps(range(steps), steps, "ddim"):
                    seen.append(bars._batches.n)
            yield

    assert len(list(bars.batches(batches(), 3))) == 3
    each = max(1, *passes[:1], 0)
    assert bars._batches.n == bars._batches.total == 3 * each
    assert seen == sorted(seen) and seen.count(0) == any(passes)
    assert f"{'steps' if any(passes) else 'batches'}: 100%" in capsys.readouterr().err
