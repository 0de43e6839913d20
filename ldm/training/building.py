"""What a configuration names, without Lightning, whose import takes seconds: the data, what is trained."""

import os
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ldm import devices
from ldm.config import instantiate
from ldm.devices import DTYPES, resolve_device
from ldm.errors import ConfigError, InputError
from ldm.training.options import TrainOptions

DECODER = ("output_blocks", "out")  # of a UNet


def build_data(config: dict[str, Any], section: str) -> Any:
    """Build a data set and check that it offers `batch`; ~ at the start of its paths is the home folder."""
    try:
        data = instantiate(_with_home(config[section]), section)
    except InputError as error:
        raise InputError(f"{section}: {error}") from error
    if not hasattr(data, "batch"):
        raise ConfigError(f"{section}: {type(data).__name__} has no batch(generator, batch_size)")
    return data


def _with_home(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _with_home(value) for name, value in node.items()}
    if isinstance(node, list):
        return [_with_home(value) for value in node]
    return os.path.expanduser(node) if isinstance(node, str) else node


def check_side(model: nn.Module, data: Any, section: str) -> None:
    """Refuse images of a side that the networks cannot halve. Raises: ConfigError."""
    unit = getattr(model, "size_multiple", None) or getattr(model, "downsampling_factor", 1)
    side = getattr(data, "crop", None) or getattr(data, "size", unit)
    if side % unit:
        raise ConfigError(f"{section}: images of {side} x {side} pixels; the model takes multiples of {unit}")


def choose_trained(module: nn.Module, prefix: str, only: list[str]) -> None:
    """Require gradients of a module's parameters, or of those whose names in the file a pattern fits.

    Args:
        prefix: of the names in the file.

    Raises:
        ConfigError: a pattern that fits none.
    """
    found = [(prefix + name, parameter) for name, parameter in module.named_parameters()]
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name, _ in found):
            raise ConfigError(f"only: {pattern} fits no tensor; expected such as {found[0][0]}")
    for name, parameter in found:
        parameter.requires_grad_(not only or any(fnmatchcase(name, pattern) for pattern in only))


class Trained(nn.Module):
    """What the training of a ControlNet changes; the decoder's names lack their `model.diffusion_model.`."""

    def __init__(self, control: nn.Module, unet: nn.Module | None) -> None:
        super().__init__()
        self.control_model = control
        for name in () if unet is None else DECODER:
            self.add_module(name, getattr(unet, name))


def device_of(train: TrainOptions) -> torch.device:
    """Return the device that the options choose here."""
    return resolve_device({"gpu": "cuda"}.get(train.accelerator, train.accelerator))


def precision_of(train: TrainOptions) -> str:
    """Return what the networks compute in: train.precision, but float32 where a CPU would emulate it."""
    return train.precision if devices.is_fast(DTYPES[train.precision], device_of(train)) else "float32"
