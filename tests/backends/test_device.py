"""Devices and dtypes: the choice, and one line where there is none."""

import functools

import pytest
import torch

from ldm.backends import device as device_module
from ldm.backends.device import autocast, resolve_device, resolve_dtype
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
        ("auto", "cpu", torch.float32), ("auto", "cuda", torch.float16), ("auto", "mps", torch.float32),
        ("float32", "cuda", torch.float32), ("bfloat16", "cpu", torch.bfloat16),
        (torch.float16, "cpu", torch.float16),
    ],
)
def test_dtypes(name, device, dtype):
    assert resolve_dtype(name, device) is dtype


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
