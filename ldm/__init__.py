"""Stable Diffusion 1.x and 2.x: models, samplers, checkpoints and training.

    model = ldm.load_model("configs/demo/emoji.yaml", "configs/demo/emoji.safetensors")
    for batch in ldm.generate(model, Txt2Img(prompts=["3d emoji of a cat"], seed=1, n_iter=1)):
        images = batch.to_uint8()

Importing the package is cheap: torch is loaded by the parts that compute, not here.
"""

import importlib
from typing import Any

from ldm import import_finder

__version__ = "0.1.0"

import_finder.install()


_DOORS = {"load_model": "ldm.loading", "generate": "ldm.jobs.execute", "execute": "ldm.jobs.execute"}


def __getattr__(name: str) -> Any:
    """Import a door of the library when it is first used, because all of them need torch."""
    if name in _DOORS:
        return getattr(importlib.import_module(_DOORS[name]), name)
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")
