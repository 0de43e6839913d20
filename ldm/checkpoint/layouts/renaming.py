"""Rename tensors by a table of module paths: what stands below a path keeps its name."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from ldm.errors import WrongModelError

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "dict[str, Tensor]"
LONGEST_NAME = 120
Pairs: TypeAlias = "list[tuple[str, str]]"      # (LDM module path, diffusers module path)


def renamed(tensors: Tensors, table: Mapping[str, str], what: str) -> Tensors:
    """Return the same tensors under the names that `table` gives their modules.

    Raises:
        WrongModelError: a name that the table does not have, or two names of one thing.
    """
    found: Tensors = {}
    for name, tensor in tensors.items():
        new = _new_name(name, table, what)
        if new in found:
            raise WrongModelError(f"{what} has {shown(name)} twice, by an older name too; remove one")
        found[new] = tensor
    return found


def _new_name(name: str, table: Mapping[str, str], what: str) -> str:
    end = len(name)
    while end > 0:
        if name[:end] in table:
            return table[name[:end]] + name[end:]
        end = name.rfind(".", 0, end)
    raise WrongModelError(f"{what} has {shown(name)}, which SD 1.x and 2.x have not; give a model of these")


def shown(name: str) -> str:
    """Return a name from a file so that it takes one short line."""
    return repr(name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "...")


def thirds(name: str, tensor: "Tensor") -> "tuple[Tensor, ...]":
    """Split what CLIP keeps as one into query, key and value, without a copy."""
    if tensor.ndim == 0 or tensor.shape[0] % 3:
        raise WrongModelError(f"{shown(name)} is {tuple(tensor.shape)}; expected query, key and value in one")
    return tensor.chunk(3)


def forward(pairs: Pairs) -> dict[str, str]:
    """Return the table from diffusers' to LDM's."""
    return {diffusers: published for published, diffusers in pairs}


def backward(pairs: Pairs) -> dict[str, str]:
    """Return the table from LDM's to diffusers'."""
    return dict(pairs)


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """Take `prefix` off the names that have it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def below(prefix: str, tensors: Tensors) -> Tensors:
    """Return the tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def count(indices: Iterable[int]) -> int:
    """Return how many there are if they are numbered from 0."""
    return max(indices, default=-1) + 1
