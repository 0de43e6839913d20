"""Build modules on the meta device: names, shapes and dtypes without memory.

Constructors draw first weights. On the meta device there is nothing to draw, and torch's way of drawing
nothing imports its compiler, which takes longer than loading a model.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWING = {Tensor.normal_, Tensor.uniform_}


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Let what is built inside be on the meta device, with no weights drawn."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Hands tensors of the meta device back as they are where their values would be drawn."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWING or getattr(func, "__module__", None) == nn.init.__name__:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
