"""What files of ControlNets say besides their names: averaged residuals, and differences from a UNet."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.config import read_config
from ldm.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FIRST = "input_blocks.0.0.weight"
DIFFERENCE = "difference"               # an empty tensor, the mark of such a file
POOLED = "sd.global_average_pooling"    # in the metadata of a file


def pooled_by(file: Path, metadata: Mapping[str, str], config: Mapping[str, Any]) -> str | None:
    """Return what says that residuals are averaged over the image, as of the shuffle model; None if nothing.

    Args:
        config: the config.json of a diffusers folder.
    """
    if "global_pool_conditions" in config:
        return "config.json" if config["global_pool_conditions"] else None
    if POOLED in metadata:
        return "its metadata" if metadata[POOLED] == "true" else None
    yaml = file.with_suffix(".yaml")
    if yaml.is_file():
        try:
            model = read_config(yaml).get("model")
            return yaml.name if model["params"].get("global_average_pooling") else None
        except (ConfigError, KeyError, TypeError, AttributeError):
            pass                        # a YAML of something else
    return "its name" if re.search(r"(^|[_.\-])shuffle($|[_.\-])", file.stem) else None


def completed(
    difference: "Mapping[str, Tensor]", unet: "Mapping[str, Tensor]", channels: int | None = None
) -> "dict[str, Tensor]":
    """Return the ControlNet that is stored as a difference from a UNet's encoder.

    Args:
        difference, unet: under names without their prefixes; a UNet on the meta device gives shapes only.
        channels: of x_t, which the ControlNet reads alone; None is all that the UNet reads.
    """
    import torch

    found = encoder_of(unet, channels)
    for name, x in difference.items():
        own = found.get(name)
        is_sum = own is not None and own.shape == x.shape and not own.is_meta
        found[name] = (own.float() + x.to(own.device, torch.float32)).to(own.dtype) if is_sum else x
    return found


def encoder_of(unet: "Mapping[str, Tensor]", channels: int | None = None) -> "dict[str, Tensor]":
    """Return the tensors of a UNet that a ControlNet copies, the first one for `channels` inputs."""
    encoder = re.compile(r"(time_embed|input_blocks|middle_block)\.")
    found = {name: x for name, x in unet.items() if encoder.match(name)}
    found[FIRST] = found[FIRST][:, :channels]
    return found
