"""Keep freed memory for the next step instead of handing it back to the system.

glibc maps every large tensor anew and unmaps it when it is freed, so each training step on a CPU pays for
faulting in and clearing gigabytes of pages. `benchmarks/cpu_allocator.py` measures what this saves.
"""

import ctypes
import logging

log = logging.getLogger(__name__)

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let malloc serve large tensors from its heap and never shrink it; for a long run of equal steps.

    The process keeps its peak of memory until it ends. Returns whether the C library took the settings: only
    glibc has them, and elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        log.info("no glibc: freed memory goes back to the system at every step")
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 64 << 20}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
