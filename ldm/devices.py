"""Choose the device and the precision, report in one line what is missing, build on the meta device.

The default device is the first of CUDA, XPU, MPS and CPU that is available. Computed in which dtype
(`AUTO_DTYPE`, `network_dtypes`):

    "auto"         CUDA, XPU   bfloat16 where the hardware has it (from compute capability 8.0 on), for it
                               reaches as far as float32; else float16: either halves the memory
                   MPS         float32: autocast is young there
                   CPU         bfloat16 where the CPU has it (AVX512-BF16, AMX, or ARM's), as the reference
                               does; else float32, because torch then emulates bfloat16 and float16, far
                               slower than float32 (docs/MEASUREMENTS.md)
    text encoder   as chosen
    UNet           as chosen; attention logits in float32 (`ldm.models.attention.attend`), because those of
                   SD 2.x, with 64 channels a head, pass 65,504, the largest float16
    image encoder, depth network       as chosen
    autoencoder    as chosen; with float16 in bfloat16 where the GPU has it and else in float32, because its
                   decoder passes 65,504 too. Compared with float32, bfloat16 is off by 0.2 of 255 on average
                   and by at most 2 (measured with the demo model); it runs once per image
    sampler        float32, always

Values that still are not finite are computed again in float32 (`ldm.networks`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.errors import BackendUnavailable, InputError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
HALVES = (torch.float16, torch.bfloat16)
DRAWING = {Tensor.normal_, Tensor.uniform_}     # first weights
# kind -> what "auto" takes, with and without bfloat16 in hardware
AUTO_DTYPE = {
    "cuda": (torch.bfloat16, torch.float16),
    "xpu": (torch.bfloat16, torch.float16),
    "mps": (torch.float32, torch.float32),
    "cpu": (torch.bfloat16, torch.float32),
}

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
        with_bfloat16, without = AUTO_DTYPE[torch.device(device).type]
        return with_bfloat16 if has_bfloat16(device) else without
    if name not in DTYPES:
        raise InputError(f"dtype {name!r}; expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def has_bfloat16(device: torch.device | str) -> bool:
    """Tell whether a device computes in bfloat16 itself; CUDA and CPUs can also emulate it, slowly."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.is_available():
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(has for name, has in _cpu_features().items() if name.endswith("bf16"))
    return device.type == "xpu" and torch.xpu.is_available() and torch.xpu.is_bf16_supported()


def is_fast(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Tell whether a device computes in a dtype itself; only CPUs are asked, others always do."""
    if torch.device(device).type != "cpu" or dtype == torch.float32:
        return True
    if dtype == torch.bfloat16:
        return has_bfloat16(device)
    return any(_cpu_features().get(name, False) for name in ("avx512_fp16", "amx_fp16"))


def _cpu_features() -> Mapping[str, Any]:
    """Return the CPU's instruction sets as torch names them, each with whether it is there."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    return {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}  # torch before 2.12


def network_dtypes(dtype: torch.dtype, device: torch.device | str) -> dict[str, torch.dtype]:
    """Return what each network of a model computes in if `dtype` was chosen."""
    autoencoder = dtype
    if dtype == torch.float16:
        autoencoder = torch.bfloat16 if has_bfloat16(device) else torch.float32
    return {
        "text encoder": dtype,
        "UNet": dtype,
        "autoencoder": autoencoder,
        "image encoder": dtype,
        "depth network": dtype,
    }


def autocast(device: torch.device | str, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Run the block in `dtype` where that is exact enough, and in float32 where it is not."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Build modules on the meta device: names, shapes and dtypes without memory, and no first weights.

    There is nothing to draw, and torch's way of drawing nothing imports its compiler, which takes longer than
    loading a model.
    """
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Returns tensors of the meta device unchanged where their values would be drawn."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWING or getattr(func, "__module__", None) == nn.init.__name__:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
