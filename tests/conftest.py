"""What every test gets: a fixed seed, its share of the cores and no way to the network."""

import importlib
import importlib.util
import os
import socket
import sys
import types
import warnings

import pytest

MAX_WORKERS = 4  # each holds torch and a few models: about 1 GB


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes share the tests (`-n 0` runs them in one, for a debugger)."""
    return min(MAX_WORKERS, os.cpu_count() or 1)


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported
    cores = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Give each test the same random numbers, whatever ran before it."""
    import torch

    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def k_diffusion():
    """Import k-diffusion's wrappers and samplers; its `__init__` also wants what only its training needs."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed; make test installs it")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    before = set(sys.modules)
    sys.modules["k_diffusion"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        package.external = importlib.import_module("k_diffusion.external")
        package.sampling = importlib.import_module("k_diffusion.sampling")
    yield package
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "k_diffusion":
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch):
    """Refuse to leave this machine: nothing here downloads, and a test that tries must fail."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address, *rest):
        local = self.family == getattr(socket, "AF_UNIX", None) or (
            isinstance(address, tuple) and str(address[0]) in ("127.0.0.1", "::1", "localhost")
        )
        if not local:
            raise RuntimeError(f"a test tried to reach {address}")
        return connect(self, address, *rest)

    monkeypatch.setattr(socket.socket, "connect", refuse)
