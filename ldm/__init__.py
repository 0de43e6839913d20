"""Stable Diffusion 1.x and 2.x: models, samplers, checkpoints and training.

Importing the package is cheap: torch is loaded by the parts that compute, not here.
"""

from typing import Any

from ldm import published_names

__version__ = "0.1.0"

published_names.install_import_finder()


def __getattr__(name: str) -> Any:
    """Load `load_model` on first use, because it needs torch."""
    if name == "load_model":
        from ldm.loading import load_model

        return load_model
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
