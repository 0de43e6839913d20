"""Signals of Ctrl-C, of batch schedulers and of a terminal that closes.

A run that can be resumed does its steps within `heeding_signals`: there the first signal is only noted, and a
line says what is being finished; whoever runs the steps looks at `stop_asked`. A second Ctrl-C ends the run
at once. Everywhere else Ctrl-C interrupts as usual, and within `ending_on_signals`, which surrounds every
command, the other signals do so too, so that temporary files are removed. A signal that is ignored, such as
Ctrl-C for a background job of a script or SIGHUP under nohup, stays ignored.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGXCPU")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]

_asked: list[str] = []
_doing: str = ""
_say: Callable[[str], None] = logging.getLogger(__name__).warning


class Ended(KeyboardInterrupt):
    """A signal other than Ctrl-C, where nothing has to be finished; the text is its name."""


def stop_asked() -> str:
    """Return the name of the signal that asked the run to stop after the present step, or ""."""
    return _asked[0] if _asked else ""


def doing(what: str) -> None:
    """Note what would have to be finished if a signal came now, for the line that says so."""
    global _doing
    _doing = what


@contextlib.contextmanager
def heeding_signals(what: str = "the present step") -> Iterator[None]:
    """Within the block, the first signal requests a stop; outside of it, a signal ends the program."""
    doing(what)
    try:
        with _handling(SIGNALS, _on_signal):
            yield
    finally:
        _asked.clear()


@contextlib.contextmanager
def ending_on_signals(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block, signals raise; a step that is finished nevertheless is announced with `say`."""
    global _say
    before, _say = _say, say
    raised = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if not raised:  # the next one would interrupt the cleaning up
            raised = True
            raise Ended(signal.Signals(number).name)

    try:
        with _handling([number for number in SIGNALS if number != signal.SIGINT], end):
            yield
    finally:
        _say = before


@contextlib.contextmanager
def _handling(numbers: list[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _asked and number == signal.SIGINT:
        raise KeyboardInterrupt
    _asked.append(signal.Signals(number).name)
    if len(_asked) == 1:
        name, again = ("Ctrl-C", "a second one") if number == signal.SIGINT else (_asked[0], "Ctrl-C")
        _say(f"{name}: finishing {_doing}, then saving the state; {again} ends the run at once")
