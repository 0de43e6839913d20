"""What is given to the network beside x_t and t, as one value that can be batched.

A conditioning is a tensor (the text context), a list of tensors, or a dict of them by their published
names: `c_crossattn` and `c_concat` are lists, `c_adm` is a tensor. None stands for no conditioning.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ldm.errors import InputError

Conditioning = Tensor | list[Any] | dict[str, Any] | None


def map_tensors(cond: Conditioning, fn: Callable[[Tensor], Tensor]) -> Conditioning:
    """Apply `fn` to every tensor of a conditioning and keep its form."""
    if isinstance(cond, dict):
        return {name: map_tensors(value, fn) for name, value in cond.items()}
    if isinstance(cond, (list, tuple)):
        return [map_tensors(value, fn) for value in cond]
    return fn(cond) if isinstance(cond, Tensor) else cond


def tensors(cond: Conditioning) -> list[Tensor]:
    """Return every tensor of a conditioning, in order."""
    found: list[Tensor] = []
    map_tensors(cond, lambda x: found.append(x) or x)
    return found


def batch_size(cond: Conditioning) -> int | None:
    """Return the number of samples that a conditioning describes; None when it holds no tensor.

    Raises:
        InputError: its parts disagree.
    """
    sizes = {len(x) for x in tensors(cond)}
    if len(sizes) > 1:
        raise InputError(f"the parts of a conditioning describe {sorted(sizes)} samples: expected one number")
    return sizes.pop() if sizes else None


def repeat(cond: Conditioning, times: int) -> Conditioning:
    """Repeat the whole batch `times` times: [a, b] becomes [a, b, a, b]."""
    return map_tensors(cond, lambda x: x.repeat(times, *(1,) * (x.ndim - 1)))


def take(cond: Conditioning, samples: slice | list[int]) -> Conditioning:
    """Return the conditioning of some samples of the batch."""
    return map_tensors(cond, lambda x: x[samples])


def concat(first: Conditioning, second: Conditioning, where: str = "conditioning") -> Conditioning:
    """Join two conditionings of the same form along the batch, `first` first.

    Raises:
        InputError: the forms, names, lengths or shapes differ; the text names the part.
    """
    if isinstance(second, dict):
        if not isinstance(first, dict) or first.keys() != second.keys():
            raise InputError(
                f"{where}: the unconditional part is {_form(first)}, the conditional part {_form(second)}; "
                "expected the same names"
            )
        return {name: concat(first[name], second[name], f"{where}[{name!r}]") for name in second}
    if isinstance(second, (list, tuple)):
        if not isinstance(first, (list, tuple)) or len(first) != len(second):
            raise InputError(
                f"{where}: the unconditional part is {_form(first)}, the conditional part {_form(second)}; "
                "expected lists of one length"
            )
        return [concat(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(first, second, strict=True))]
    if first is None and second is None:
        return None
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)) or first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"{where}: the unconditional part is {_form(first)}, the conditional part {_form(second)}; "
            "expected tensors that differ at most in their batch"
        )
    return torch.cat([first, second])


def _form(cond: Any) -> str:
    if isinstance(cond, dict):
        return f"a dict of {sorted(cond)}"
    if isinstance(cond, (list, tuple)):
        return f"a list of {len(cond)}"
    return f"a tensor {tuple(cond.shape)}" if isinstance(cond, Tensor) else repr(cond)
