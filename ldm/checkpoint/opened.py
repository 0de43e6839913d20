"""Open weights in any container: the tensors by part, mapped from the files, and what is said of them."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoint.delta import base_of, completed
from ldm.checkpoint.sniff import Container, sniff
from ldm.errors import CheckpointError, DamagedCheckpointError, LdmError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")      # model-00002-of-00005.safetensors
COUNTERS = ("global_step", "epoch")             # what is kept of a training file beside its weights


@dataclass(frozen=True)
class Opened:
    """Weights as they are stored: nothing is renamed, converted or read."""

    path: Path
    container: Container
    parts: "dict[str, dict[str, Tensor]]"       # part of a diffusers folder -> its tensors; one file: ""
    configs: dict[str, dict[str, Any]]          # part -> its config.json; "model_index" and "scheduler" too
    metadata: dict[str, str]                    # of .safetensors; of a .ckpt its global_step and epoch
    files: list[Path]                           # the weights files, in the order of reading


def open_weights(path: str | Path, *, variant: str | None = None) -> Opened:
    """Open a .ckpt, .pt, .bin or .safetensors file, or a diffusers folder: a whole pipeline or one part.

    A file that is the difference from another (`ldm.checkpoint.delta`) is opened whole, with that one.

    Tensors are views of the memory-mapped files wherever the format allows it: reading them costs no memory
    that the system cannot take back, and the files must not change while they live.

    Args:
        path: the file or folder.
        variant: which of several sets in a folder to take ("fp16", "non_ema"); None takes the plain one.

    Raises:
        UnsafeCheckpointError: it names something outside the allow-list; nothing of it was executed.
        NotACheckpointError: it is something else than weights.
        CheckpointError: it is missing, truncated, damaged or incomplete.
    """
    path = Path(path).expanduser()
    with one_line_errors(path):
        container = sniff(path)
        if container is Container.FOLDER:
            from ldm.checkpoint.folder import open_folder

            return open_folder(path, variant)
        if variant is not None:
            raise CheckpointError(f"{path}: is one file, and variant {variant!r} is asked for; give a folder")
        shard = SHARD.search(path.name)
        if shard and int(shard[1]) > 1:
            raise CheckpointError(f"{path}: is one of {int(shard[1])} shards; give the folder {path.parent}")
        tensors, metadata = read_file(path, container)
        base = base_of(path, metadata)
        if base is None:
            return Opened(path, container, {"": tensors}, {}, metadata, [path])
        with one_line_errors(base):
            theirs, said = read_file(base, sniff(base))
        tensors, metadata = completed(path, tensors, metadata, theirs, said)
        return Opened(path, container, {"": tensors}, {}, metadata, [path, base])


def published(opened: Opened) -> "dict[str, Tensor]":
    """Return all tensors under their published names, whatever the layout; mapped, but for joined ones.

    Raises:
        WrongModelError: weights of something else, such as a LoRA or SDXL.
        NotACheckpointError: names that belong to no known model.
    """
    from ldm.checkpoint.layouts import to_published
    from ldm.checkpoint.pages import release_pages

    tensors = to_published(opened.parts, opened.configs, str(opened.path))
    taken = {x.untyped_storage().data_ptr() for x in tensors.values()}
    for part in opened.parts.values():
        for x in part.values():
            if x.untyped_storage().data_ptr() not in taken:     # it was copied, joined with others
                release_pages(x)
    return tensors


def read_file(path: Path, container: Container) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """Return the tensors of one file under the names stored, and its metadata."""
    from ldm.checkpoint import pickle_file, safetensors_file
    from ldm.checkpoint.tensors import only_tensors

    if container is Container.SAFETENSORS:
        content = safetensors_file.read(path)
        return only_tensors(content, path), _safetensors_metadata(path)
    content = pickle_file.read_zip(path) if container is Container.ZIP else pickle_file.read_legacy(path)
    tensors = only_tensors(content, path)
    return tensors, _counters(content, tensors)


@contextmanager
def one_line_errors(path: Path) -> Iterator[None]:
    """Turn whatever a library thinks of a broken file into one line; the only border of this kind."""
    try:
        yield
    except LdmError:
        raise
    except Exception as error:
        detail = (str(error).splitlines() or [""])[0][:120]
        reason = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
        text = f"{path}: is truncated or damaged ({reason}); download it again"
        raise DamagedCheckpointError(text) from error


def _safetensors_metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        return dict(file.metadata() or {})


def _counters(content: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return what a training file counts; bare files may have tensors of these names."""
    there = {name: content.get(name) for name in COUNTERS if name not in tensors}
    return {name: str(value) for name, value in there.items() if type(value) is int}
