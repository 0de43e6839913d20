"""Signals of Ctrl-C and batch schedulers: the first stops a run after its step, a second Ctrl-C at once.

The handler only sets a flag, which whoever runs the steps checks. A signal that is ignored, such as Ctrl-C
for a background job of a script, stays ignored.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]

_asked: list[str] = []


def stop_asked() -> str:
    """Return the name of the signal that asked the run to stop after the present step, or ""."""
    return _asked[0] if _asked else ""


@contextlib.contextmanager
def heeding_signals() -> Iterator[None]:
    """Within the block, the first signal requests a stop; outside of it, a signal ends the program."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _asked and number == signal.SIGINT:
        raise KeyboardInterrupt
    _asked.append(signal.Signals(number).name)
