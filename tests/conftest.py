"""What every test gets: a fixed seed, its share of the cores and no way to the network."""

import os
import socket

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
