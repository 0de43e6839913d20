"""Devices and dtypes: the choice, and one line where there is none."""

import contextlib
import functools

import pytest
import torch

from ldm import devices as device_module
from ldm.devices import _cpu_features as cpu_features
from ldm.devices import autocast, has_bfloat16, is_fast, network_dtypes, resolve_device, resolve_dtype
from ldm.errors import BackendUnavailable, InputError


@pytest.fixture
def machine(monkeypatch):
    """Pretend that a machine has these kinds of devices, two of each."""

    def pretend(*kinds):
        known = device_module.KINDS
        there = {kind: (functools.partial(kinds.__contains__, kind), known[kind][1]) for kind in known}
        monkeypatch.setattr(device_module, "KINDS", there)
        monkeypatch.setattr(device_module, "_count", lambda kind: 2)

    return pretend


@pytest.mark.parametrize(
    "kinds, chosen", [(["cpu"], "cpu"), (["cpu", "mps"], "mps"), (["cpu", "mps", "xpu", "cuda"], "cuda")]
)
def test_auto_takes_the_fastest_that_is_there(machine, kinds, chosen):
    machine(*kinds)
    assert resolve_device("auto") == torch.device(chosen)


def test_named_devices(machine):
    machine("cpu", "cuda")
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device(torch.device("cuda:0")) == torch.device("cuda", 0)
    with pytest.raises(BackendUnavailable, match=r"cuda:2 does not exist.*0\.\.1"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "xpu"])
def test_an_absent_device_is_one_line_that_says_what_to_do(machine, name):
    machine("cpu")
    with pytest.raises(BackendUnavailable) as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value) and "--device auto or cpu" in str(caught.value)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "CPU", "cuda:1:2", "cuda:²"])
def test_what_is_no_device_name(name):
    with pytest.raises(InputError, match="expected auto, cuda"):
        resolve_device(name)


@pytest.mark.parametrize(
    "name, device, dtype",
    [
        ("auto", "cpu", torch.float32), ("auto", "mps", torch.float32),
        ("float32", "cuda", torch.float32), ("bfloat16", "cpu", torch.bfloat16),
        (torch.float16, "cpu", torch.float16),
    ],
)
def test_dtypes(name, device, dtype):
    assert resolve_dtype(name, device) is dtype


@pytest.fixture
def hardware(monkeypatch):
    """Pretend that the GPUs have bfloat16, or have not."""

    def pretend(bfloat16):
        def supported(including_emulation=True):
            assert not including_emulation, "imitating it is slower than float16"
            return bfloat16

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
        monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: bfloat16)

    return pretend


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "xpu"])
@pytest.mark.parametrize("bfloat16, dtype", [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_is_bfloat16_where_the_gpu_has_it(hardware, device, bfloat16, dtype):
    hardware(bfloat16)
    assert has_bfloat16(device) is bfloat16
    assert resolve_dtype("auto", device) is dtype


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_auto_is_float32_elsewhere(hardware, device):
    hardware(True)
    assert resolve_dtype("auto", device) is torch.float32


@pytest.mark.parametrize(
    "dtype, device, bfloat16, autoencoder",
    [
        (torch.float16, "cuda", True, torch.bfloat16), (torch.float16, "cuda", False, torch.float32),
        (torch.float16, "cpu", True, torch.float32), (torch.float16, "mps", True, torch.float32),
        (torch.bfloat16, "cuda", True, torch.bfloat16), (torch.float32, "cuda", True, torch.float32),
        (torch.bfloat16, "cpu", True, torch.bfloat16),
    ],
)  # fmt: skip
def test_only_the_autoencoder_is_never_in_float16(hardware, dtype, device, bfloat16, autoencoder):
    hardware(bfloat16)
    networks = ("text encoder", "UNet", "image encoder", "depth network")
    expected = dict.fromkeys(networks, dtype) | {"autoencoder": autoencoder}
    assert network_dtypes(dtype, torch.device(device)) == expected


@pytest.mark.parametrize("name", ["half", "fp16", torch.int8, torch.float64, ""])
def test_what_is_no_dtype(name):
    with pytest.raises(InputError, match="expected auto, float32"):
        resolve_dtype(name)


def test_autocast_computes_in_the_dtype_and_leaves_float32_alone():
    x = torch.ones(2, 2)
    with autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
    with autocast(torch.device("cpu"), torch.float32):
        assert (x @ x).dtype is torch.float32


FAST = {
    "AVX2": ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, (False, False)),
    "AVX512 without BF16": ({"avx512_f": True, "avx512_bf16": False}, (False, False)),
    "AVX512-BF16": ({"avx512_bf16": True}, (True, False)),
    "AMX": ({"amx_bf16": True, "amx_fp16": True}, (True, True)),
    "ARM": ({"neon_bf16": True}, (True, False)),
}


@pytest.mark.parametrize("features, fast", FAST.values(), ids=FAST)
def test_a_cpu_is_asked_for_half_precision(features, fast, monkeypatch):
    monkeypatch.setattr(device_module, "_cpu_features", lambda: features)
    assert (is_fast(torch.bfloat16, "cpu"), is_fast(torch.float16, "cpu")) == fast
    assert is_fast(torch.float32, "cpu") and is_fast(torch.float16, "cuda")
    assert resolve_dtype("auto", "cpu") is (torch.bfloat16 if fast[0] else torch.float32)


def test_torch_is_asked_for_the_features_of_this_cpu():
    assert {"avx2", "avx512_bf16"} <= cpu_features().keys() or "neon" in cpu_features()
