"""Choose the device and the precision, and say in one line what is missing.

By default: the first of CUDA, XPU, MPS and CPU that is there; float16 on CUDA and XPU, whose memory it
halves; float32 on CPU, where float16 is slower, and on MPS, where autocast is young.
"""

import contextlib
from collections.abc import Callable

import torch

from ldm.errors import BackendUnavailable, InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
AUTO_DTYPE = {"cuda": torch.float16, "xpu": torch.float16, "mps": torch.float32, "cpu": torch.float32}

# kind -> (is there one, how to get one); the order is the order of preference of "auto"
KINDS: dict[str, tuple[Callable[[], bool], str]] = {
    "cuda": (lambda: torch.cuda.is_available(), "needs an NVIDIA or AMD GPU and a GPU build of torch"),
    "xpu": (lambda: torch.xpu.is_available(), "needs an Intel GPU and an XPU build of torch"),
    "mps": (lambda: torch.backends.mps.is_available(), "needs a Mac with Apple silicon"),
    "cpu": (lambda: True, ""),
}


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device that "auto", "cpu", "cuda", "cuda:N", "xpu", "xpu:N" or "mps" means here.

    Raises:
        InputError: not the name of a device.
        BackendUnavailable: this machine has no such device.
    """
    if str(name) == "auto":
        return torch.device(next(kind for kind, (is_there, _) in KINDS.items() if is_there()))
    kind, colon, index = str(name).partition(":")
    if kind not in KINDS or (colon and not (index.isascii() and index.isdecimal())):
        raise InputError(f"device {str(name)!r}; expected auto, cuda, cuda:N, xpu, mps or cpu")
    is_there, needs = KINDS[kind]
    if not is_there():
        raise BackendUnavailable(f"device {kind} is not available: it {needs}; use --device auto or cpu")
    count = _count(kind)
    if index and int(index) >= count:
        raise BackendUnavailable(f"device {name} does not exist; {kind} devices here: 0..{count - 1}")
    return torch.device(kind, int(index)) if index else torch.device(kind)


def _count(kind: str) -> int:
    return {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}.get(kind, lambda: 1)()


def resolve_dtype(name: str | torch.dtype = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """Return the dtype that "auto", "float32", "float16" or "bfloat16" means on `device`.

    Raises:
        InputError: not one of these names.
    """
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name == "auto":
        return AUTO_DTYPE[torch.device(device).type]
    if name not in DTYPES:
        raise InputError(f"dtype {name!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def autocast(device: torch.device | str, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Run the block in `dtype` where that is exact enough and in float32 where not; nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)
