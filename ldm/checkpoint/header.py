"""Read what a weights file says of its tensors, without the tensors and without torch: in milliseconds.

Of a .safetensors file that is its header, of a .ckpt its pickle, gone through without making a thing of it.
The checks are those of loading, so what is refused there is refused here.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from ldm.checkpoint.sniff import Container

# name in a .safetensors file, name of a pickled storage -> (torch's name, bytes a value)
SAFETENSORS = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "F8_E8M0": ("float8_e8m0fnu", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1), "C64": ("complex64", 8),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1), "BOOL": ("bool", 1),
}
STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16",
    "Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL",
}
ITEM_BYTES = dict(SAFETENSORS.values())


class Stored(NamedTuple):
    """A tensor as its file describes it."""

    dtype: str                  # torch's name, "float16"
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]


def pickled(storage: str, shape: tuple[int, ...]) -> Stored:
    """Return what a tensor over "torch.FloatStorage" or another storage is."""
    spelled = STORAGES[storage.removeprefix("torch.").removesuffix("Storage")]
    return Stored(SAFETENSORS[spelled][0], shape)


def read_header(path: Path, container: Container) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors of one file by name, in its order, and its metadata.

    Of a pickled file with a `state_dict` only that counts; in others a tensor's name is the path to it, with
    dots. Its metadata are the numbers and texts that stand beside, and as "holds" its other topmost keys.

    Raises:
        CheckpointError: as loading does.
    """
    if container is Container.SAFETENSORS:
        from ldm.checkpoint.safetensors_file import checked_header

        tensors, metadata = checked_header(path)
        stored = {name: Stored(SAFETENSORS[dtype][0], shape) for name, (dtype, shape) in tensors.items()}
        return stored, metadata
    from ldm.checkpoint.pickle_file import rehearse
    from ldm.checkpoint.rehearsal import leaves

    return _sorted_out(list(leaves(rehearse(path, container).content)))


def _sorted_out(found: list[tuple[tuple[str, ...], Any]]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Part weights from what stands beside them."""
    wrapped = any(keys[0] == "state_dict" for keys, _ in found if len(keys) > 1)
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for keys, leaf in found:
        if wrapped == (keys[:1] == ("state_dict",)) and isinstance(leaf, Stored):
            tensors[".".join(keys[1:] if wrapped else keys)] = leaf
        elif len(keys) == 1 and type(leaf) in (int, float, str) and len(str(leaf)) < 200:
            metadata[keys[0]] = str(leaf)
    weights = {"state_dict"} if wrapped else {keys[0] for keys, leaf in found if isinstance(leaf, Stored)}
    beside = {keys[0]: None for keys, _ in found if keys and keys[0] not in weights and len(keys) > 1}
    if beside:
        metadata["holds"] = ", ".join(beside)
    return tensors, metadata
