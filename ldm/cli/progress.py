"""Progress bars: tqdm on stderr.

Where stderr is a file the outer bar is redrawn every ten seconds and the inner one left out.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from ldm.jobs.watch import Watch

T = TypeVar("T")


def bar(
    items: Iterable[T], total: int, what: str, *, quiet: bool = False, inner: bool = False
) -> Iterator[T]:
    """Yield the items under a bar; an inner bar disappears when it is full."""
    from tqdm import tqdm

    on_terminal = sys.stderr.isatty()
    yield from tqdm(
        items,
        desc=what,
        total=total,
        leave=not inner,
        disable=quiet or (inner and not on_terminal),
        mininterval=0.1 if on_terminal else 10.0,
        dynamic_ncols=True,
        position=1 if inner else 0,
    )


class Bars(Watch):
    """Progress bars of loading, batches and steps."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet

    def loading(self) -> AbstractContextManager[Callable[[int, int], None]]:
        return byte_bar("loading", quiet=self.quiet or not sys.stderr.isatty())

    def batches(self, batches: Iterable[T], total: int) -> Iterator[T]:
        return bar(batches, total, "batches", quiet=self.quiet)

    def steps(self, steps: Iterable[T], total: int, what: str) -> Iterator[T]:
        return bar(steps, total, what, quiet=self.quiet, inner=True)


@contextmanager
def byte_bar(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function to be told (bytes done, bytes in all); the bar is there while the block runs."""
    from tqdm import tqdm

    mininterval = 0.1 if sys.stderr.isatty() else 10.0
    options = {"unit": "B", "unit_scale": True, "mininterval": mininterval, "dynamic_ncols": True}
    shown = None

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:       # not before: an error stands alone
            shown = tqdm(desc=what, total=total, disable=quiet, **options)
        shown.update(done - shown.n)

    try:
        yield tell
    finally:
        if shown is not None:
            shown.close()
