"""How much memory a network takes, and how much there is.

    need = what the process holds + bytes a pixel * pixels

The bytes a pixel are found by running the network once on something small and adding up, after each
operation, the bytes of all tensors that are alive: nothing grows faster than the number of pixels, as
attention makes no matrix (ldm.models.attention). So widths, depth and dtype need no table. Besides, on CPUs a
convolution copies what goes in and what comes out into blocks of channels (WORKSPACE), and every estimate is
taken ALLOWANCE larger, for memory that is not given back at once. benchmarks/upscale_memory.py measures how
far it is off.
"""

import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WORKSPACE = {"cpu": 1.0}
"""A convolution's copies, as a part of what goes in and comes out; elsewhere libraries keep to small ones."""
ALLOWANCE = 1.15


class _Counting:
    """Counts what goes through __torch_dispatch__.

    It is not a method of the mode itself, because torch would wrap it there in its compiler, whose import
    takes seconds.
    """

    alive = peak = 0
    workspace = 0.0
    _seen: dict[int, weakref.ref]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in args if isinstance(x, Tensor)}  # of views, nothing new
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor) and id(x.untyped_storage()) not in given:
                self._count(x.untyped_storage())
        extra = 0
        if self.workspace and function is torch.ops.aten.convolution.default:
            extra = int(self.workspace * (_bytes(args[0]) + _bytes(out)))
        self.peak = max(self.peak, self.alive + extra)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._seen and self._seen[key]() is storage:
            return

        def gone(_: weakref.ref) -> None:
            self.alive -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.alive += size


class Peak(_Counting, TorchDispatchMode):
    """Adds up the bytes of the tensors that operations make while they are alive; `peak` is the most.

    Args:
        workspace: what a convolution takes besides, as a part of its input and output.
    """

    def __init__(self, workspace: float = 0.0) -> None:
        super().__init__()
        self.workspace = workspace
        self._seen = {}


@torch.no_grad()
def peak_bytes(compute: Callable[[], object], device: torch.device) -> int:
    """Return the most bytes of tensors that are alive at once while `compute` runs on a device."""
    with Peak(WORKSPACE.get(device.type, 0.0)) as counted:
        compute()
    return int(ALLOWANCE * counted.peak)


def used_bytes(device: torch.device) -> int:
    """Return what this process holds: of the device's memory, on CPUs and Macs of the machine's."""
    if device.type in ("cuda", "xpu"):
        return getattr(torch, device.type).memory_allocated(device)
    return resident_bytes()


def free_bytes(device: torch.device) -> int | None:
    """Return what a run may still take without another giving it up; None where nobody knows."""
    if device.type in ("cuda", "xpu"):
        backend = getattr(torch, device.type)
        return (
            backend.mem_get_info(device)[0]
            + backend.memory_reserved(device)
            - backend.memory_allocated(device)
        )
    found = [_meminfo("MemAvailable"), _cgroup_free()]
    return min((size for size in found if size is not None), default=None)


def resident_bytes() -> int:
    """Return what this process holds in memory now; 0 where the system does not say."""
    return _field(Path("/proc/self/status"), "VmRSS")


def peak_resident_bytes() -> int:
    """Return the most that this process held in memory."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _meminfo(name: str) -> int | None:
    if size := _field(Path("/proc/meminfo"), name):
        return size
    try:  # macOS: half of what there is, as it does not say what is free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (ValueError, OSError, AttributeError):
        return None


def _field(path: Path, name: str) -> int:
    """Return the bytes that a line `NAME:  123 kB` tells; 0 without."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _cgroup_free(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return what the tightest limit of this process's group and those above it leaves; None without one.

    Pages of files that can be dropped do not count as used.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    found = []
    for number, controllers, path in lines:
        old = "memory" in controllers.split(",")
        if not old and number != "0":
            continue
        top = root / "memory" if old else root
        names = ("limit_in_bytes", "usage_in_bytes") if old else ("max", "current")
        folder = top / path.lstrip("/")
        for group in [folder, *folder.parents]:
            limit, usage = (_number(group / f"memory.{name}") for name in names)
            if limit is not None and usage is not None and limit < 1 << 60:
                found.append(max(0, limit - usage + _droppable(group / "memory.stat")))
            if group == top:
                break
    return min(found, default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _droppable(path: Path) -> int:
    try:
        fields = dict(line.split() for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(fields.get("inactive_file", fields.get("total_inactive_file", 0)))


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
