"""The eager backend: networks run as they are."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Eager:
    name = "eager"

    def prepare(self, network: nn.Module, example: tuple[Any, ...]) -> Callable[..., Tensor]:
        return network


EAGER = Eager()
