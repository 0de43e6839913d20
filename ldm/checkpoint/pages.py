"""Tell the system which pages of a memory-mapped file are needed next, and which no longer.

Asked for ahead, a file comes from the disk in large pieces, while the tensors before are converted. Handed
back, its pages do not count beside the copies made of them: converting a 5 GB float32 file to half precision
keeps 2.5 GB and not 7.5.
"""

import ctypes
import mmap
import sys
from collections import deque
from collections.abc import Iterable
from functools import cache

from torch import Tensor

WINDOW = 64 << 20       # bytes asked for ahead


def is_mapped(tensor: Tensor) -> bool:
    """Tell whether `tensor`, of `load_checkpoint`, lies in a mapped file: only own memory can be resized."""
    return tensor.device.type == "cpu" and not tensor.untyped_storage().resizable()


class ReadAhead:
    """Asks for the pages of mapped tensors a little ahead of whoever goes through them in this order."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._waiting = deque(_pages_of(tensor) for tensor in tensors if is_mapped(tensor))
        self._ahead = 0

    def go_on(self, used: Tensor | None = None) -> None:
        """Keep WINDOW bytes on their way; `used` has been gone through."""
        self._ahead -= used.nbytes if used is not None and is_mapped(used) else 0
        while self._waiting and self._ahead < WINDOW:
            first, last = self._waiting.popleft()
            _advise(first, last, mmap.MADV_WILLNEED)
            self._ahead += last - first


def release_pages(tensor: Tensor) -> None:
    """Drop the whole pages under a mapped tensor from memory; reading it again reads the file again.

    Pages that a caller has written to would lose the change. Memory that is of no file stays as it is: a
    tensor that shares it with a numpy array cannot be resized either.
    """
    if not is_mapped(tensor):
        return
    start = tensor.untyped_storage().data_ptr()
    end = start + tensor.untyped_storage().nbytes()
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and _is_of_a_file(first):
        _advise(first, last, mmap.MADV_DONTNEED)


def _pages_of(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of the pages that a tensor lies on, whole ones."""
    start, page = tensor.data_ptr(), mmap.PAGESIZE
    return start // page * page, -(-(start + tensor.nbytes) // page) * page


def _advise(first: int, last: int, advice: int) -> None:
    if _madvise() is not None:
        _madvise()(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(advice))


def _is_of_a_file(address: int) -> bool:
    """Look the address up in the system's table: "start-end rights offset device inode path"."""
    with open("/proc/self/maps", "rb") as table:
        for line in table:
            bounds, _, _, _, inode = line.split(maxsplit=5)[:5]
            start, _, end = bounds.partition(b"-")
            if int(start, 16) <= address < int(end, 16):
                return inode != b"0"
    return False


@cache
def _madvise() -> ctypes._CFuncPtr | None:
    """Return the C library's madvise; only Linux gives MADV_DONTNEED this meaning."""
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
