"""Read one weights file, whatever its container."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint.sniff import Container

if TYPE_CHECKING:
    from torch import Tensor

COUNTERS = ("global_step", "epoch")             # what is kept of a training file besides its weights


@dataclass(frozen=True)
class Opened:
    """Weights as they are stored: nothing is renamed, converted or read."""

    path: Path
    container: Container
    parts: "dict[str, dict[str, Tensor]]"       # part of a diffusers folder -> its tensors; one file: ""
    configs: dict[str, dict[str, Any]]          # part -> its config.json; "model_index" and "scheduler" too
    metadata: dict[str, str]                    # of .safetensors; of a .ckpt its global_step and epoch
    files: list[Path]                           # the weights files, in the order of reading


def read_file(path: Path, container: Container) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Return the tensors of one file under the names stored, and its metadata."""
    from ldm.checkpoint import pickle_file, safetensors_file
    from ldm.checkpoint.tensors import only_tensors

    if container is Container.SAFETENSORS:
        content, metadata = safetensors_file.read(path)
        return only_tensors(content, path), metadata
    content = pickle_file.read_zip(path) if container is Container.ZIP else pickle_file.read_legacy(path)
    tensors = only_tensors(content, path)
    return tensors, _counters(content, tensors)


def _counters(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return what a training file counts; bare files may have tensors of these names."""
    there = {name: content.get(name) for name in COUNTERS if name not in tensors}
    return {name: str(value) for name, value in there.items() if type(value) is int}
