"""What somebody who waits for a request is shown."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

T = TypeVar("T")


class Watch:
    """Shows nothing; a subclass shows bars in a terminal, or a page, and may stop the run."""

    def loading(self) -> "AbstractContextManager[Callable[[int, int], None] | None]":
        """Give what is called with (bytes read, bytes in all) while the weights are read."""
        return nullcontext()

    def batches(self, batches: Iterable[T], total: int) -> Iterator[T]:
        """Yield the batches of a run as they come."""
        yield from batches

    def steps(self, steps: Iterable[T], total: int, what: str) -> Iterator[T]:
        """Yield the sampling steps of a batch as they come; `what` is the name of the sampler."""
        yield from steps

    def stop_asked(self) -> bool:
        """Return True to stop the run after the current step, so that it can be resumed."""
        return False


SILENT = Watch()
