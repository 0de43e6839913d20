"""Progress bars: tqdm on stderr.

Where stderr is a file the outer bar is redrawn every ten seconds and the inner one left out.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

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


def step_bar(what: str, quiet: bool) -> Callable[[Iterable[T], int], Iterator[T]]:
    """Return what a task calls to watch the steps of a batch."""
    return lambda steps, total: bar(steps, total, what, quiet=quiet, inner=True)


def batch_bar(batches: Iterable[T], total: int, args: argparse.Namespace) -> Iterator[T]:
    """Show how many batches of the whole run are done."""
    return bar(batches, total, "batches", quiet=args.quiet)


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
