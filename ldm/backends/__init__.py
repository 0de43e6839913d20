"""What runs the networks. A backend is one file here and one row in `BACKENDS`."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from ldm.backends.compiled import Compiled
from ldm.backends.eager import EAGER


class Backend(Protocol):
    """One way to run networks."""

    name: str

    def prepare(self, network: nn.Module, example: tuple[Any, ...]) -> Callable[..., Tensor]:
        """Return what runs a network on inputs like these, in shapes and dtypes; called once for each shape.

        Args:
            example: positional arguments of the network: tensors, None, or lists of tensors.
        """
        ...


BACKENDS: dict[str, Callable[[], Backend]] = {"eager": lambda: EAGER, "compiled": Compiled}
"""name -> makes the backend"""
