"""A model as its difference from another: the tensors that differ, the other file's name and hash.

    delta = {name: x for name, x in tuned if base[name] is not x, bit for bit}
    tuned = base without the absent names, with delta over it

Metadata: `sd.base`, the name of the other file, which is next to the delta; `sd.base_sha256`; `sd.absent`, a
JSON list of the base's names that the tuned model lacks. So the digest of a delta is one of the whole model.

Reading completes a delta (`ldm.checkpoint.opened`, `identification`), so nothing else needs to know of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from ldm.checkpoint.sniff import shown
from ldm.errors import CheckpointError, DamagedCheckpointError
from ldm.files.digest import sha256
from ldm.wording import script

BASE, BASE_SHA256, ABSENT = "sd.base", "sd.base_sha256", "sd.absent"

T = TypeVar("T")                # a tensor, or what a header says of it


def base_of(path: Path, metadata: Mapping[str, str]) -> Path | None:
    """Return the file that the delta `path` is to be completed by; None where `path` is no delta.

    Raises:
        CheckpointError: it is not next to the delta, or is another file than the delta was made from.
    """
    if BASE not in metadata:
        return None
    base = path.parent / Path(metadata[BASE]).name
    if not base.is_file():
        raise CheckpointError(f"{path}: is a difference from {shown(base.name)}; put that file next to it")
    if sha256(base) != metadata.get(BASE_SHA256):
        raise CheckpointError(f"{path}: is a difference from another file than {base}; download both again")
    return base


def completed(
    path: Path,
    delta: Mapping[str, T],
    metadata: Mapping[str, str],
    base: Mapping[str, T],
    base_metadata: Mapping[str, str],
) -> tuple[dict[str, T], dict[str, str]]:
    """Return the whole model of the delta `path` and its base, and what it says of itself.

    Raises:
        CheckpointError: the base is a difference itself.
        DamagedCheckpointError: the list of absent names is none.
    """
    if BASE in base_metadata:
        name = shown(metadata[BASE])
        raise CheckpointError(
            f"{path}: is a difference from {name}, which is one itself; "
            f"first make that whole: {script('convert')} {name} OUT.safetensors"
        )
    absent = _absent(path, metadata)
    whole = {name: x for name, x in base.items() if name not in absent} | dict(delta)
    return whole, {key: text for key, text in metadata.items() if key not in (BASE, BASE_SHA256, ABSENT)}


def _absent(path: Path, metadata: Mapping[str, str]) -> set[str]:
    try:
        names = json.loads(metadata.get(ABSENT, "[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DamagedCheckpointError(f"{path}: its metadata {ABSENT} is no list of names; download it again")
    return set(names)
