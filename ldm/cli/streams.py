"""What is printed where nobody may be reading any more: a closed terminal, a lost connection, a full line."""

import errno
import os
import sys

DEAD = (errno.EIO, errno.EPIPE)
LONGEST = 2000  # characters of a message


def bounded(message: str, longest: int = LONGEST) -> str:
    """Return the message, or its beginning and how much is left out."""
    if len(message) <= longest:
        return message
    return f"{message[:longest]} ... ({len(message) - longest} more characters)"


def say_at_once(line: str) -> None:
    """Write a line to stderr from a signal handler, around Python's buffers, which may be in use."""
    try:
        on_terminal = sys.stderr.isatty()  # where a progress bar may stand in the line
        text = f"\r\x1b[K{line}\n" if on_terminal else f"{line}\n"
        os.write(sys.stderr.fileno(), text.encode(errors="replace"))
    except OSError as error:
        if error.errno is None:  # a stream without a file
            sys.stderr.write(f"{line}\n")
    except (AttributeError, ValueError):  # no stderr, or a closed one
        pass
    drop_dead_streams()


def drop_dead_streams() -> None:
    """Let what is printed go nowhere where its reader is gone, so that no later print or flush fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
            os.write(stream.fileno(), b"")  # a terminal that has hung up refuses even this
        except OSError as error:
            if error.errno in DEAD:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
        except (AttributeError, ValueError, RuntimeError):  # none, closed, or in use by who was interrupted
            pass
