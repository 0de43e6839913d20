"""The dtypes that files know, and a tensor as its file describes it. Imports no torch."""

import math
from typing import NamedTuple

# torch's name -> (name in .safetensors, bytes a value, name of the storage class in a pickle)
DTYPES = {
    "float64": ("F64", 8, "Double"), "float32": ("F32", 4, "Float"), "float16": ("F16", 2, "Half"),
    "bfloat16": ("BF16", 2, "BFloat16"), "int64": ("I64", 8, "Long"), "int32": ("I32", 4, "Int"),
    "int16": ("I16", 2, "Short"), "int8": ("I8", 1, "Char"), "uint8": ("U8", 1, "Byte"),
    "bool": ("BOOL", 1, "Bool"),
    "float8_e4m3fn": ("F8_E4M3", 1, None), "float8_e5m2": ("F8_E5M2", 1, None),
    "float8_e8m0fnu": ("F8_E8M0", 1, None), "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1, None),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1, None), "complex64": ("C64", 8, None),
    "uint64": ("U64", 8, None), "uint32": ("U32", 4, None), "uint16": ("U16", 2, None),
}  # fmt: skip
PLAIN = tuple(name for name, (_, _, storage) in DTYPES.items() if storage)      # what can be read
OF_SAFETENSORS = {spelled: name for name, (spelled, _, _) in DTYPES.items()}
OF_STORAGES = {f"torch.{storage}Storage": name for name, (_, _, storage) in DTYPES.items() if storage}
# What a pickle may name as a dtype, whether it can be read or not.
PICKLED = {
    f"torch.{name}"
    for name in (
        *DTYPES, "complex32", "complex128", "float4_e2m1fn_x2",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
        "qint8", "quint8", "qint32", "quint4x2", "quint2x4",
        "bits8", "bits16", "bits1x8", "bits2x4", "bits4x2",
    )
}  # fmt: skip


class Stored(NamedTuple):
    """A tensor as its file describes it."""

    dtype: str                  # a key of DTYPES
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype][1]
