"""What every test gets: a fixed seed, its share of the cores and no way to the network."""

import gc
import importlib
import importlib.util
import logging
import os
import random
import signal
import socket
import sys
import types
import warnings

import pytest

MAX_WORKERS = 4  # each holds torch and a few models: about 1 GB


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes share the tests (`-n 0` runs them in one, for a debugger)."""
    return min(MAX_WORKERS, os.cpu_count() or 1)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what `@pytest.mark.few(n)` leaves out."""
    products: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few"):
            products.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for name, product in products.items():
        kept = spread(product, product[0].get_closest_marker("few").args[0], name)
        for item in product:
            if item not in kept:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over the modules and the tests, which stay until the end."""
    gc.collect()
    gc.freeze()


def spread(product: list[pytest.Item], count: int, seed: str) -> list[pytest.Item]:
    """Choose `count` combinations that have as many different values of each parameter as can be.

    Every run chooses the same; another test chooses others, so that together they meet all values.
    """
    left = random.Random(seed).sample(product, len(product))
    chosen, seen = [], set()
    while left and len(chosen) < count:
        best = max(left, key=lambda item: len(item.callspec.indices.items() - seen))
        left.remove(best)
        chosen.append(best)
        seen |= best.callspec.indices.items()
    return chosen


# nohup and shells let the programs that they start in the background ignore these
for name, handler in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), handler)

# Compile each module once, whatever the shell says, not in every process that a test starts.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before torch is imported
    cores = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep findings about files out of the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _fixed_seed():
    """Give each test the same random numbers, whatever ran before it."""
    import torch

    torch.default_generator.manual_seed(0)  # torch.manual_seed keeps a stack trace of each call for CUDA
    yield


@pytest.fixture(autouse=True)
def _plain_cpu():
    """Let every CPU compute in float32 by default, and in another dtype if asked to."""
    from ldm import devices

    with pytest.MonkeyPatch.context() as patch:  # a test may undo its own
        patch.setattr(devices, "_cpu_features", dict)
        patch.setattr(devices, "is_fast", lambda dtype, device: True)
        yield


@pytest.fixture(autouse=True)
def _fresh_log():
    """Leave the library's log as an importer finds it, whatever a script of the test set up."""
    yield
    logger = logging.getLogger("ldm")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


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
