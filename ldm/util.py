"""The one helper of the reference's `ldm.util` that other people's code calls."""

from typing import Any

from ldm.config import instantiate


def instantiate_from_config(config: Any) -> Any:
    """Build the node `config` ({target, params}); see `ldm.config.instantiate`."""
    return instantiate(config, path="config")
