"""Networks that cannot be compiled are trained as they are."""

import pytest
import torch
from training_loop import Loop, weights

from ldm.training.module import first_error, is_of_compiler

GCC = (
    "C++ compile error\n\nCommand:\ng++ /tmp/x/main.cpp -D TORCH_INDUCTOR_CPP_WRAPPER\n\nOutput:\n"
    "/tmp/x/main.cpp: In function 'void kernel(const float*)':\n"
    "/tmp/x/main.cpp:17:41: error: 'at::vec::Vectorized<float>' has no member named 'exp_u20'\n"
    + "/tmp/x/main.cpp:18:41: error: another\n" * 5000
)


class CppCompileError(RuntimeError):
    __module__ = "torch._inductor.exc"


class Fails(torch.autograd.Function):
    """Passes on, and fails on the way back after some gradients are there."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise CppCompileError(GCC)


def in_forward(network):
    def call(*args, **options):
        raise CppCompileError(GCC)

    return call


def in_backward(network):
    def call(*args, **options):
        reconstruction, posterior = network._call_impl(*args, **options)
        return Fails.apply(reconstruction), posterior

    return call


def in_the_second_micro_batch(network):
    calls = []

    def call(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise CppCompileError(GCC)
        return network._call_impl(*args, **options)

    return call


@pytest.mark.few(1)
@pytest.mark.parametrize("fails", [in_forward, in_backward, in_the_second_micro_batch])
def test_training_goes_on_uncompiled_and_equal(config, monkeypatch, caplog, fails):
    made = config("autoencoder", accumulate=2)
    plain, failing = Loop(made, monkeypatch), Loop(made, monkeypatch)
    network = failing.module.autoencoder
    network._compiled_call_impl = fails(network)
    failing.module.is_compiled = True
    plain.run(2)
    failing.run(2)
    for name, value in weights(plain.module).items():
        assert torch.equal(value, weights(failing.module)[name]), name
    said = [record.getMessage() for record in caplog.records if "compile" in record.getMessage()]
    assert said == [
        "the networks cannot be compiled (error: 'at::vec::Vectorized<float>' has no member named "
        "'exp_u20'); training goes on uncompiled"
    ]


def test_errors_of_the_network_itself_are_errors(config, monkeypatch):
    loop = Loop(config("autoencoder"), monkeypatch)
    network = loop.module.autoencoder
    loop.module.is_compiled = True

    def call(*args, **options):
        raise RuntimeError("sizes do not match")

    network._compiled_call_impl = call
    with pytest.raises(RuntimeError, match="sizes do not match"):
        loop.run(1)


def test_what_is_of_the_compiler():
    wrapped = RuntimeError("while compiling")
    wrapped.__cause__ = CppCompileError("x")
    assert is_of_compiler(wrapped) and not is_of_compiler(RuntimeError("x")) and not is_of_compiler(None)
    assert not is_of_compiler(CppCompileError("DefaultCPUAllocator: can't allocate memory"))


@pytest.mark.parametrize(
    "text, line",
    [
        ("", "CppCompileError"),
        ("No working C++ compiler found in CXX: (None, 'g++')\nmore", "No working C++ compiler found in CXX"),
        ("In file included\nx.h:1:1: fatal error: omp.h: no file\nx: error: y", "fatal error: omp.h: no"),
        ("x" * 230_000, "x" * 200),
        (f"a: error: {'y' * 1000}", "error: yyy"),
    ],
)
def test_the_first_error_is_found(text, line):
    found = first_error(CppCompileError(text))
    assert found.startswith(line) and len(found) <= 200 and "\n" not in found
