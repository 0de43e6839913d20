"""Make the reference's modules importable.

`ldm.published_names` has the table of their names. It is read when one of these modules is imported, not
before, because every script imports this module.
"""

import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

PACKAGES = ("ldm", "cldm", "scripts")


class OldNamesFinder:
    """Find the old modules. It stands last in `sys.meta_path`, so a real module always wins."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how to load an old module; None for every other name."""
        if fullname.partition(".")[0] not in PACKAGES or fullname == "ldm.published_names":
            return None
        from ldm.published_names import published_modules

        if fullname not in published_modules():
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return an old module, an empty shell."""
        from ldm.published_names import OldModule

        return OldModule(spec.name, "Names of the reference repository, kept for notebooks and wrappers.")

    def exec_module(self, module: ModuleType) -> None:
        """Leave the shell empty: attributes come from `OldModule.__getattr__`."""


def install() -> None:
    """Make the old modules importable. A second call changes nothing."""
    if not any(isinstance(finder, OldNamesFinder) for finder in sys.meta_path):
        sys.meta_path.append(OldNamesFinder())
