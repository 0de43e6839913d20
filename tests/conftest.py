"""What every test gets: a fixed seed and no way to the network."""

import socket

import pytest


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
