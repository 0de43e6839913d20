"""Ctrl-C and what batch schedulers send: the first ends the run after its step, the second at once.

A handler only sets a flag; whoever runs steps looks at it (`ldm.cli.watching`). A signal that is ignored, as
Ctrl-C is behind `&` in a script, stays so.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]

_asked = threading.Event()


def stop_asked() -> bool:
    """Tell whether the run is to stop after the present step."""
    return _asked.is_set()


@contextlib.contextmanager
def heeding_signals() -> Iterator[None]:
    """Let the first signal within the block ask to stop; outside of it, a signal ends the program."""
    if threading.current_thread() is not threading.main_thread():  # only that one gets signals
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
    if _asked.is_set():
        raise KeyboardInterrupt
    _asked.set()
