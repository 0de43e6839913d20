"""The reference's dotted names, and where each lives today.

Users own YAML files, notebooks and wrappers that say `ldm.models.diffusion.ddpm.LatentDiffusion`. One
table, published_names.json, serves both ways in: `ldm.config` looks `target:` up in it, and
`ldm.import_finder` makes the old modules importable. An old module is an empty shell that fetches an
attribute when it is asked for, so there is one tree of code and importing this module loads no torch.
"""

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

# "moved": old module -> module of today -> the names that moved there. In a checkout scripts.txt2img and
# scripts.img2img themselves are found first, and import the same functions.
# "ignored": reason -> keys of reference configurations that no longer matter. A class that takes one gets it.
_TABLE: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
PUBLISHED: dict[str, str] = {
    f"{old}.{name}": f"{new}.{name}"
    for old, moved in _TABLE["moved"].items()
    for new, names in moved.items()
    for name in names
} | {
    "ldm.modules.attention.MemoryEfficientCrossAttention": "ldm.models.attention.CrossAttention",
    "cldm.ddim_hacked.DDIMSampler": "ldm.samplers.published.ControlDDIMSampler",
}
IGNORED_PARAMS: dict[str, str] = {key: reason for reason, keys in _TABLE["ignored"].items() for key in keys}


@functools.cache
def published_modules() -> set[str]:
    """Return the dotted names of all old modules and the packages above them (not `ldm` itself)."""
    modules = set()
    for name in PUBLISHED:
        parts = name.split(".")[:-1]
        modules.update(".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return modules - {"ldm"}


def resolve(dotted: str) -> Any:
    """Import the object that today's dotted name points to."""
    module, _, attribute = dotted.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class OldModule(ModuleType):
    """An old module: no code, only names fetched on first use."""

    def __getattr__(self, attribute: str) -> Any:
        published = f"{self.__name__}.{attribute}"
        if published in PUBLISHED:
            value = resolve(PUBLISHED[published])
            setattr(self, attribute, value)
            return value
        kept = [name for name in dir(self) if not name.startswith("_")]
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {attribute!r}; of the reference names it keeps "
            f"{', '.join(kept)}; see ldm/published_names.json"
        )

    def __dir__(self) -> list[str]:
        prefix = self.__name__ + "."
        children = {name.removeprefix(prefix).split(".")[0] for name in PUBLISHED if name.startswith(prefix)}
        return sorted(children | set(super().__dir__()))
