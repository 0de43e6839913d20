"""What a pickled checkpoint may name: torch's tensors, and inert stubs for a trainer's classes.

A file saved by a trainer mentions its callbacks, its OmegaConf hyper-parameters and numpy scalars besides the
weights. A stub replaces each: it is of this module, does nothing, and is discarded with everything else that
is no tensor. So neither pytorch_lightning nor omegaconf is imported.
"""

import _codecs
import re
from typing import Any

import numpy as np

from ldm.checkpoint.stored import OF_STORAGES, PICKLED

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
# tensors and data that are no plain dense weights; none of them is unsafe
NOT_PLAIN = re.compile(
    r"torch\.(Complex\w*|Q\w+|storage\.Untyped)Storage|torch\.serialization\._get_layout|torch\.sparse_\w+"
    r"|torch\._utils\._rebuild_(sparse_tensor|sparse_csr_tensor|qtensor|meta_tensor_no_storage|nested_tensor"
    r"|tensor_v3|wrapper_subclass|device_tensor_from_numpy|device_tensor_from_cpu_tensor)"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.per_(tensor|channel)_\w+"
)

TRAINER_CLASS = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|omegaconf|torchmetrics|deepspeed"
    r"|torch\.optim)(\.[a-z_]\w*)*\.[A-Z]\w*"
)
TRAINER_TYPES = {
    "argparse.Namespace",
    "builtins.bool", "builtins.bytes", "builtins.complex", "builtins.float", "builtins.frozenset",
    "builtins.int", "builtins.list", "builtins.object", "builtins.range", "builtins.slice", "builtins.str",
    "builtins.tuple",
    "datetime.datetime", "datetime.timedelta",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct", "numpy.ndarray",
    "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePath", "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath", "pathlib.WindowsPath", "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "torch.torch_version.TorchVersion",
    "typing.Any",
    "uuid.UUID",
}
DICT_CLASS = re.compile(
    r"(pytorch_lightning|lightning|lightning_fabric)\.(\w+\.)*AttributeDict|yacs\.config\.CfgNode"
)


class Inert:
    """Accepts any construction and any state; does nothing with either."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class ParameterDict(dict):
    """The parameters of a `torch.nn.ParameterDict`, as textual-inversion files hold them."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state["_parameters"])


def numpy_scalar(dtype: Any, data: bytes = b"") -> int | float | bool:
    """Read a numpy scalar as a Python number; numpy's own would take an object dtype and unpickle again."""
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
    "torch.nn.modules.container.ParameterDict": ParameterDict,
}
NUMBER_TYPES = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}     # what numpy.dtype(...) gives


def is_plain(name: str) -> bool:
    """Tell whether `name` stands for plain data, rather than a sparse, quantized or complex tensor."""
    return not NOT_PLAIN.fullmatch(name)


def refused(names: set[str]) -> list[str]:
    """Return those of `names` that a weights file has no need of, sorted."""
    allowed = REBUILDERS | OF_STORAGES.keys() | PICKLED | TRAINER_TYPES | NUMPY_AND_CONTAINERS.keys()
    return sorted(name for name in names if name not in allowed and is_plain(name) and not _is_inert(name))


def stubs(names: set[str]) -> list[tuple[Any, str]]:
    """Return (object, dotted name) for those of `names` that torch itself does not know."""
    pairs = [(value, name) for name, value in NUMPY_AND_CONTAINERS.items() if name in names]
    if "numpy.dtype" in names:
        pairs += [(kind, f"numpy.dtypes.{kind.__name__}") for kind in NUMBER_TYPES]
    for name in names:
        if DICT_CLASS.fullmatch(name):
            pairs.append((dict, name))
        elif name in TRAINER_TYPES or _is_inert(name):
            pairs.append((type(name.rpartition(".")[2], (Inert,), {}), name))
    return pairs


def _is_inert(name: str) -> bool:
    return bool(TRAINER_CLASS.fullmatch(name) or DICT_CLASS.fullmatch(name))
