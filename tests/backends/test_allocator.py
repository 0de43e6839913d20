"""Freed memory is kept, and keeping it changes nothing else."""

import platform
import subprocess
import sys

import pytest

# After the first round the heap is as large as it will be, so a second one faults in no new pages.
PROGRAM = """
import resource, sys, torch
from ldm.backends.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():
    for _ in range(4):
        torch.ones(16 << 20)  # 64 MB, above what glibc ever serves from its heap by itself
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_used_again_without_page_faults():
    assert page_faults("keep") < 1000 < page_faults("as it comes")
