"""Progress bars: tqdm on stderr.

If stderr is not a terminal, one bar counts the steps of all batches and is redrawn only every ten seconds.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from ldm.cli.streams import drop_dead_streams
from ldm.jobs.watch import Watch

T = TypeVar("T")


def bar(
    items: Iterable[T], total: int, what: str, *, quiet: bool = False, inner: bool = False
) -> Iterator[T]:
    """Yield the items under a bar; an inner bar disappears when it is full."""
    yield from _tqdm(items, total, what, quiet=quiet, inner=inner)


def _tqdm(items: Iterable[T] | None, total: int, what: str, *, quiet: bool, inner: bool = False) -> Any:
    from tqdm import tqdm

    class Bar(tqdm):
        """A bar that nobody may see is no reason to fail."""

        def display(self, *args: Any, **options: Any) -> Any:
            try:
                return super().display(*args, **options)
            except OSError:
                drop_dead_streams()

        def close(self) -> None:
            try:
                super().close()
            except OSError:
                drop_dead_streams()

    on_terminal = sys.stderr.isatty()
    return Bar(
        items,
        desc=what,
        total=total,
        leave=not inner,
        disable=quiet,
        mininterval=0.1 if on_terminal else 10.0,
        dynamic_ncols=True,
        position=1 if inner else 0,
    )


class Bars(Watch):
    """Progress bars of loading, batches and steps.

    The bar of the batches appears with the first step, so that an error before it stands alone.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._total = self._done = 0
        self._in_each = 1       # what the bar counts in a batch: steps, or the batch itself
        self._batches: Any = None

    def loading(self) -> AbstractContextManager[Callable[[int, int], None]]:
        return byte_bar("loading", quiet=self.quiet or not sys.stderr.isatty())

    def batches(self, batches: Iterable[T], total: int) -> Iterator[T]:
        self._total, self._done, self._batches = total, 0, None
        try:
            for batch in batches:
                self._show(1)
                yield batch
                self._done += 1
                self._batches.update(self._done * self._in_each - self._batches.n)
        finally:
            if self._batches is not None:
                self._batches.close()

    def steps(self, steps: Iterable[T], total: int, what: str) -> Iterator[T]:
        on_terminal = sys.stderr.isatty()
        self._show(1 if on_terminal else max(1, total))
        return bar(steps, total, what, quiet=self.quiet, inner=True) if on_terminal else self._counted(steps)

    def _counted(self, steps: Iterable[T]) -> Iterator[T]:
        for step in steps:
            yield step
            if self._batches.n < (self._done + 1) * self._in_each:     # some tasks take steps of two sizes
                self._batches.update()

    def _show(self, in_each: int) -> None:
        if self._batches is None:
            self._in_each = in_each
            what = "batches" if in_each == 1 else "steps"
            self._batches = _tqdm(None, self._total * in_each, what, quiet=self.quiet)


@contextmanager
def byte_bar(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Provide a function that is called with (bytes done, total bytes) and shows them as a bar."""
    from tqdm import tqdm

    mininterval = 0.1 if sys.stderr.isatty() else 10.0
    options = {"unit": "B", "unit_scale": True, "mininterval": mininterval, "dynamic_ncols": True}
    shown = None

    def show(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:       # not earlier, so that no bar appears above an error
            shown = tqdm(desc=what, total=total, disable=quiet, **options)
        shown.update(done - shown.n)

    try:
        yield show
    finally:
        if shown is not None:
            shown.close()
