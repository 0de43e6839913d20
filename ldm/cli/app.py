"""Run a command: flags in, exit code out.

    0 done    2 wrong input    4 an image is NaN or black    5 disk full    6 out of memory
    70 a defect of ours    75 stopped by Ctrl-C or SIGTERM, and can be resumed    130 interrupted at once

A run that makes images and is asked to stop finishes the step, saves its state, prints how to resume and
exits with 75 (EX_TEMPFAIL: try again, as batch schedulers read it). A second Ctrl-C, or one before the first
step, exits with 130.

Every failure is one line, `error: what is wrong`, on stderr; `--debug` shows the traceback instead.
What a command has to say goes to stdout, warnings to stderr.
"""

import argparse
import errno
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ldm.errors import LdmError, OutOfMemory, Stopped, is_out_of_memory

EXIT_DISK_FULL, EXIT_INTERNAL, EXIT_INTERRUPTED = 5, 70, 130

log = logging.getLogger("ldm")


def run(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the command line, run `main(args)` and leave with its exit code."""
    sys.exit(exit_code(parser, main, argv))


def exit_code(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line and run `main(args)`; failures become a line and a code."""
    args = argparse.Namespace()
    try:
        parser.parse_args(argv, args)
        set_up_logging(quiet=getattr(args, "quiet", False), debug=getattr(args, "debug", False))
        main(args)
        return 0
    except Stopped as stopped:
        _report(str(stopped), prefix="")
        return stopped.exit_code
    except KeyboardInterrupt:
        _report("interrupted", prefix="")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has left; there is nobody to tell
        sys.stdout = None
        return 0
    except Exception as error:
        if getattr(args, "debug", False):
            logging.getLogger("ldm").debug("traceback", exc_info=True)
        message, code = describe(error)
        _report(message)
        return code


def describe(error: Exception) -> tuple[str, int]:
    """Return one line for the user and the exit code."""
    if isinstance(error, LdmError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        advice = "use a smaller --n_samples, --H or --W, or --dtype float16"
        return f"out of memory: {error}; {advice}", OutOfMemory.exit_code
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install the requirements: pip install . in the repository", LdmError.exit_code
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}", EXIT_DISK_FULL if full else LdmError.exit_code
    return (
        f"internal error: {type(error).__name__}: {error}; run again with --debug and report it",
        EXIT_INTERNAL,
    )


def set_up_logging(quiet: bool = False, debug: bool = False) -> None:
    """Send the library's log to the terminal: information to stdout, warnings to stderr."""
    out, err = _BesideBars(sys.stdout), _BesideBars(sys.stderr)
    out.addFilter(lambda record: logging.DEBUG < record.levelno < logging.WARNING)
    err.addFilter(lambda record: not logging.DEBUG < record.levelno < logging.WARNING)
    out.setFormatter(logging.Formatter("%(message)s"))
    err.setFormatter(_LowerCaseLevel("%(levelname)s: %(message)s"))
    log.handlers = [out, err]
    log.propagate = False
    log.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


class _BesideBars(logging.StreamHandler):
    """Takes progress bars away while it writes, so that a message has a line of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _LowerCaseLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().format(record)


def _report(message: str, prefix: str = "error: ") -> None:
    """Print one line; control characters of file names and prompts do not reach the terminal."""
    line = re.sub(r"[\x00-\x1f\x7f\x80-\x9f]+", " ", message).strip()
    if "tqdm" in sys.modules:  # a bar that is still open would stand before the line, and again after it
        from tqdm import tqdm

        for bar in sorted(getattr(tqdm, "_instances", ()), key=lambda bar: -abs(bar.pos)):
            bar.close()
    print(f"{prefix}{line}".encode("utf-8", "replace").decode(), file=sys.stderr, flush=True)
