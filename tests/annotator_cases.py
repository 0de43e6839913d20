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
    """Import a module of controlnet-aux alone: the package imports all of them, which takes many seconds.

    Args:
        without: a module that it imports, but that the test does not need; it is left empty.
    """
    if "controlnet_aux" not in sys.modules:
        spec = importlib.util.find_spec("controlnet_aux")
        if spec is None:
            pytest.skip("compares with controlnet-aux, which make test installs")
        package = ModuleType("controlnet_aux")
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["controlnet_aux"] = package
    if without is not None:
        sys.modules.setdefault(f"controlnet_aux.{without}", MagicMock())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"controlnet_aux.{name}")


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Return a network with random weights that keep the size of what passes through."""
    draw = torch.Generator().manual_seed(seed)
    for x in network.parameters():
        fan_in = max(x[0].numel(), 1) if x.ndim > 1 else 100
        x.data = torch.randn(x.shape, generator=draw) * (2 / fan_in) ** 0.5
    return network.eval()
