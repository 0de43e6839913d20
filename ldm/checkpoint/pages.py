"""Hand pages of a memory-mapped file back to the system once a tensor has been copied out of them.

Without it, converting a 5 GB float32 file to half precision would count 5 GB of clean file pages beside the
2.5 GB that are kept.
"""

import ctypes
import mmap
import sys
from functools import cache

from torch import Tensor


def is_mapped(tensor: Tensor) -> bool:
    """Tell whether `tensor`, of `load_checkpoint`, lies in a mapped file: only own memory can be resized."""
    return tensor.device.type == "cpu" and not tensor.untyped_storage().resizable()


def release_pages(tensor: Tensor) -> None:
    """Drop the whole pages under a mapped tensor from memory; reading it again reads the file again.

    Pages that a caller has written to would lose the change. Memory that is of no file stays as it is: a
    tensor that shares it with a numpy array cannot be resized either.
    """
    if not is_mapped(tensor) or _madvise() is None:
        return
    page = mmap.PAGESIZE
    start = tensor.untyped_storage().data_ptr()
    end = start + tensor.untyped_storage().nbytes()
    first, last = -(-start // page) * page, end // page * page
    if last > first and _is_of_a_file(first):
        _madvise()(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(mmap.MADV_DONTNEED))


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
