"""The compiled backend: networks run through torch.compile, one graph for each shape of their inputs."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import is_out_of_memory

logger = logging.getLogger(__name__)


class Compiled:
    """Compiles networks, and runs those that cannot be compiled as they are.

    Args:
        compiler: a backend of torch.compile.
    """

    name = "compiled"

    def __init__(self, compiler: str = "inductor") -> None:
        self.compiler = compiler

    def prepare(self, network: nn.Module, example: tuple[Any, ...]) -> Callable[..., Tensor]:
        """Compile the network for inputs like `example` and run it once."""
        try:
            compiled = torch.compile(network, backend=self.compiler, dynamic=False)
            compiled(*example)
        except Exception as error:  # of any of the compiler's parts, or a missing C++ compiler
            if is_out_of_memory(error):
                raise
            said = "%s cannot be compiled (%s: %s); it runs without"
            first_line = str(error).strip().partition("\n")[0]
            logger.warning(said, type(network).__name__, type(error).__name__, first_line)
            return network
        return compiled
