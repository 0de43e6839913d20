"""Open weights in any container: the tensors by part, mapped from the files, and their metadata."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.checkpoint.delta import base_of, completed
from ldm.checkpoint.one_file import Opened, read_file
from ldm.checkpoint.sniff import Container, sniff
from ldm.config import find_weights
from ldm.errors import CheckpointError
from ldm.files.reading import reading

if TYPE_CHECKING:
    from torch import Tensor

SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")      # model-00002-of-00005.safetensors


def open_weights(path: str | Path, *, variant: str | None = None) -> Opened:
    """Open a .ckpt, .pt, .bin or .safetensors file, or a diffusers folder: a whole pipeline or one part.

    A file that is the difference from another (`ldm.checkpoint.delta`) is completed by that one.

    Tensors are views of the memory-mapped files wherever the format allows it: reading them takes no memory
    that the system cannot take back, and the files must not change while they live.

    Args:
        path: the file or folder.
        variant: which of several sets in a folder to take ("fp16", "non_ema"); None takes the plain one.

    Raises:
        UnsafeCheckpointError: it names something outside the allow-list; nothing of it was executed.
        NotACheckpointError: it is something else than weights.
        CheckpointError: it is missing, truncated, damaged or incomplete.
    """
    path = find_weights(path)
    with reading(path):
        container = sniff(path)
        if container is Container.FOLDER:
            from ldm.checkpoint.folder import open_folder

            return open_folder(path, variant)
        if variant is not None:
            raise CheckpointError(f"{path}: is one file, so it has no variant {variant!r}; give a folder")
        shard = SHARD.search(path.name)
        if shard and int(shard[1]) > 1:
            raise CheckpointError(f"{path}: is one of {int(shard[1])} shards; give the folder {path.parent}")
        tensors, metadata = read_file(path, container)
        base = base_of(path, metadata)
        if base is None:
            return Opened(path, container, {"": tensors}, {}, metadata, [path])
        with reading(base):
            of_base = read_file(base, sniff(base))
        tensors, metadata = completed(path, tensors, metadata, *of_base)
        return Opened(path, container, {"": tensors}, {}, metadata, [path, base])


def to_ldm_names(opened: Opened) -> "dict[str, Tensor]":
    """Return all tensors under LDM key names, whatever the layout; mapped, except for joined ones.

    Raises:
        WrongModelError: weights of something else, such as a LoRA or SDXL.
        NotACheckpointError: names that belong to no known model.
    """
    from ldm.checkpoint.layouts import to_ldm

    return to_ldm(opened.parts, opened.configs, str(opened.path))
