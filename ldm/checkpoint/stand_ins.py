"""What a pickled checkpoint may name: torch's tensors, and inert things in place of a trainer's classes.

A file saved by a trainer mentions its callbacks, its OmegaConf hyper-parameters and numpy scalars beside the
weights. A stand-in takes the place of each: it is of this module, keeps the raw state, does nothing, and is
thrown away with everything else that is no tensor. So neither pytorch_lightning nor omegaconf is imported.
"""

import _codecs
import re
from typing import Any

import numpy as np
import torch

REBUILDERS = {
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch.device",
    "builtins.set",
}
STORAGES = {
    f"torch.{kind}Storage"
    for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
}
DTYPES = {str(dtype) for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}

TRAINER_CLASS = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf)(\.[a-z_]\w*)*\.[A-Z]\w*"
)
TRAINER_TYPES = {
    "argparse.Namespace",
    "builtins.bool", "builtins.float", "builtins.int", "builtins.list", "builtins.object", "builtins.str",
    "builtins.tuple",
    "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath",
    "typing.Any",
}


class Inert:
    """Accepts any construction and any state; does nothing with either."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def numpy_scalar(dtype: Any, data: bytes = b"") -> int | float | bool:
    """Read a numpy scalar as a Python number; numpy's own would take an object dtype and unpickle anew."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "fiub" or len(data) != dtype.itemsize:
        raise ValueError("a numpy scalar that is no number")
    return np.frombuffer(data, dtype)[0].item()


def empty_dict(*args: Any) -> dict[Any, Any]:
    """Stand in for a defaultdict or dict; its items are set afterwards."""
    return {}


NUMPY_AND_CONTAINERS = {
    "_codecs.encode": _codecs.encode,
    "builtins.dict": empty_dict,
    "collections.defaultdict": empty_dict,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
    "numpy.dtype": np.dtype,
}
NUMBER_TYPES = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}     # what numpy.dtype(...) gives


def refused(names: set[str]) -> list[str]:
    """Return those of `names` that a weights file has no need of, sorted."""
    allowed = REBUILDERS | STORAGES | DTYPES | TRAINER_TYPES | NUMPY_AND_CONTAINERS.keys()
    return sorted(name for name in names if name not in allowed and not TRAINER_CLASS.fullmatch(name))


def stand_ins(names: set[str]) -> list[tuple[Any, str]]:
    """Return (object, dotted name) for those of `names` that torch itself does not know."""
    pairs = [(value, name) for name, value in NUMPY_AND_CONTAINERS.items() if name in names]
    if "numpy.dtype" in names:
        pairs += [(kind, f"numpy.dtypes.{kind.__name__}") for kind in NUMBER_TYPES]
    for name in names:
        if name in TRAINER_TYPES or TRAINER_CLASS.fullmatch(name):
            pairs.append((type(name.rpartition(".")[2], (Inert,), {}), name))
    return pairs
