"""Run a command, from the command line to its exit code.

    0 done    2 wrong input    4 an image is NaN or black    5 disk full    6 out of memory
    70 internal error    75 stopped by a signal, to be resumed or run again    130 interrupted immediately

When a run that generates images receives Ctrl-C, SIGTERM or SIGHUP (its terminal was closed), it finishes the
current step, saves its state, prints how to resume, and exits with 75 (EX_TEMPFAIL, which batch schedulers
take as "try again"). A second Ctrl-C, or one before the first step, exits with 130. Where there is nothing to
save, the other signals exit with 75 at once.

Every failure is reported on stderr as one line, `error: what is wrong`; `--debug` also shows the traceback.
Other output goes to stdout, warnings to stderr.
"""

import argparse
import contextlib
import errno
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ldm.cli.streams import bounded, drop_dead_streams, say_at_once
from ldm.errors import LdmError, OutOfMemory, Stopped, is_out_of_memory
from ldm.signals import Ended, ending_on_signals

EXIT_DISK_FULL, EXIT_INTERNAL, EXIT_INTERRUPTED = 5, 70, 130

# what to do about failures of the system whose names do not say it
ADVICE = {
    errno.ENOSPC: "; free some space, or write to another disk",
    errno.EFBIG: "; raise the limit of file sizes (ulimit -f), or write to another disk",
}

log = logging.getLogger("ldm")


def run(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the command line, run `main(args)` and exit with its code."""
    sys.exit(exit_code(parser, main, argv))


def exit_code(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run `main(args)` and return the exit code; failures are printed as one line."""
    args = argparse.Namespace()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what its encoding lacks is written as an escape
            stream.reconfigure(errors="backslashreplace")
    try:
        parser.parse_args(argv, args)
        set_up_logging(quiet=getattr(args, "quiet", False), debug=getattr(args, "debug", False))
        with ending_on_signals(say_at_once):
            main(args)
        return 0
    except Stopped as stopped:
        _report(str(stopped), prefix="")
        return stopped.exit_code
    except Ended as ended:
        _report(f"stopped by {ended}; run the command again", prefix="")
        return Stopped.exit_code
    except KeyboardInterrupt:
        _report("interrupted", prefix="")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed it, so nothing can be reported
        sys.stdout = None
        return 0
    except Exception as error:
        if getattr(args, "debug", False):
            logging.getLogger("ldm").debug("traceback", exc_info=True)
        message, code = describe(error)
        _report(message)
        return code
    finally:
        drop_dead_streams()


def describe(error: Exception) -> tuple[str, int]:
    """Return the text for the user, and the exit code."""
    if isinstance(error, LdmError):
        return str(error), error.exit_code
    if is_out_of_memory(error):
        advice = "use a smaller --n_samples, --H or --W, or --dtype float16"
        return f"out of memory{f': {error}' if str(error) else ''}; {advice}", OutOfMemory.exit_code
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install the requirements: pip install . in the repository", LdmError.exit_code
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
        where = f": {error.filename}" if error.filename else ""
        advice = ADVICE.get(error.errno, "")
        return f"{error.strerror or error}{where}{advice}", EXIT_DISK_FULL if full else LdmError.exit_code
    return (
        f"internal error: {type(error).__name__}: {error}; please run again with --debug and report it",
        EXIT_INTERNAL,
    )


def set_up_logging(quiet: bool = False, debug: bool = False) -> None:
    """Print the library's log: information to stdout, warnings to stderr."""
    out, err = _BesideBars(sys.stdout), _BesideBars(sys.stderr)
    out.addFilter(lambda record: logging.DEBUG < record.levelno < logging.WARNING)
    err.addFilter(lambda record: not logging.DEBUG < record.levelno < logging.WARNING)
    out.setFormatter(logging.Formatter("%(message)s"))
    err.setFormatter(_LowerCaseLevel("%(levelname)s: %(message)s"))
    log.handlers = [out, err]
    log.propagate = False
    log.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)


class _BesideBars(logging.StreamHandler):
    """Hides progress bars while it writes, so that every message has its own line."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:
            super().emit(record)
            return
        from tqdm import tqdm

        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose a message that the stream does not take, such as that of a closed terminal."""
        drop_dead_streams()


class _LowerCaseLevel(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return bounded(super().format(record)) if record.exc_info is None else super().format(record)


def _report(message: str, prefix: str = "error: ") -> None:
    """Print one line, without control characters from file names and prompts."""
    line = bounded(re.sub(r"[\x00-\x1f\x7f\x80-\x9f]+", " ", message).strip())
    if "tqdm" in sys.modules:  # an open bar would appear before the line and again after it
        from tqdm import tqdm

        for bar in sorted(getattr(tqdm, "_instances", ()), key=lambda bar: -abs(bar.pos)):
            bar.close()
    with contextlib.suppress(OSError):  # stderr may be gone
        print(f"{prefix}{line}", file=sys.stderr, flush=True)
