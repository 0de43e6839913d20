"""What the tests of annotators share."""

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest
import skimage.data
import torch
from torch import nn


def photograph() -> np.ndarray:
    """Return a photograph of an astronaut, (512, 512, 3) uint8."""
    return skimage.data.astronaut()


def aux(name: str, without: str | None = None) -> ModuleType:
    """Import a module of controlnet-aux alone: its packages import all of theirs, which takes many seconds.

    Args:
        without: a module that it imports, but that the test does not need; it is left empty.
    """
    first, *others = f"controlnet_aux.{name}".split(".")[:-1]
    if first not in sys.modules:
        spec = importlib.util.find_spec(first)
        if spec is None:
            pytest.skip("compares with controlnet-aux, which make test installs")
        _add_bare_package(first, spec.submodule_search_locations[0])
    for each in others:
        if f"{first}.{each}" not in sys.modules:
            _add_bare_package(f"{first}.{each}", f"{sys.modules[first].__path__[0]}/{each}")
    if without is not None:
        sys.modules.setdefault(f"controlnet_aux.{without}", MagicMock())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"controlnet_aux.{name}")


def _add_bare_package(name: str, folder: str) -> None:
    package = ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Return a network with random weights that keep the size of what passes through."""
    many = torch.randn(2**20, generator=torch.Generator().manual_seed(seed))    # drawing all takes seconds
    for name, x in list(network.named_parameters()):
        fan_in = max(x[0].numel(), 1) if x.ndim > 1 else 100
        many = many.roll(4099)
        value = many.repeat(-(-x.numel() // len(many)))[: x.numel()].reshape(x.shape) * (2 / fan_in) ** 0.5
        owner, _, leaf = name.rpartition(".")
        network.get_submodule(owner)._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    return network.eval()
