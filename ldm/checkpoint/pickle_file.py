"""Read torch's pickled files (.ckpt, .pt, .pth) through its restricted unpickler, and never any other way.

Before that the names a pickle would import are compared with an allow-list of our own, shorter than torch's,
and a zip archive is checked for what a loader must not meet: compressed members (a small file that unpacks to
gigabytes), repeated names, bytes outside the archive.
"""

import io
import re
import threading
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ldm.checkpoint.globals_in_pickle import globals_in_pickle
from ldm.checkpoint.stand_ins import refused, stand_ins
from ldm.errors import CheckpointError, UnsafeCheckpointError

SAFE_SINCE = (2, 10)            # before it, a file could corrupt memory all the same: CVE-2026-24747
MAX_PICKLE_BYTES = 16_000_000
MAX_MEMBERS = 100_000
LEGACY_PICKLES = 5              # magic number, protocol, system, content, storage keys; then the raw storages

_allow_list = threading.Lock()  # torch's is one for the whole process


def read_zip(path: Path) -> Any:
    """Return the content of a zip-format file, its tensors mapped from the file."""
    _check_torch(path)
    with zipfile.ZipFile(path) as archive:
        pickle = archive.read(_checked_archive(archive, path))
    names = globals_in_pickle(io.BytesIO(pickle))
    _refuse(names, path)
    if path.suffix.lower() == ".safetensors":       # torch goes by the name and would not look inside
        with path.open("rb") as file:
            return _load(file, names, mmap=False)
    return _load(path, names, mmap=True)


def read_legacy(path: Path) -> Any:
    """Return the content of a file in the format that torch wrote before 1.6."""
    _check_torch(path)
    with path.open("rb") as file:
        names = set()
        for _ in range(LEGACY_PICKLES):
            try:
                names |= globals_in_pickle(file)
            except Exception:
                if names:
                    break       # an ordinary pickle ends after one; its names say what it is
                raise
            _refuse(names, path)
        file.seek(0)
        content = _load(file, names, mmap=False)
        surplus = path.stat().st_size - file.tell()
    if surplus:
        raise CheckpointError(f"{path}: has {surplus} bytes behind its end; download it again")
    return content


def _check_torch(path: Path) -> None:
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_SINCE:
        wanted = ".".join(map(str, SAFE_SINCE))
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot read pickled checkpoints safely; "
            f"install torch {wanted} or newer, or give a .safetensors file"
        )


def _refuse(names: set[str], path: Path) -> None:
    bad = refused(names)
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UnsafeCheckpointError(
            f"{path}: refused, it names {', '.join(bad[:5])}{more}, which no weights need; "
            "nothing was executed; ask its author for the state_dict alone, as .safetensors"
        )


def _load(source: Path | BinaryIO, names: set[str], mmap: bool) -> Any:
    with _allow_list, torch.serialization.safe_globals(stand_ins(names)):
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _checked_archive(archive: zipfile.ZipFile, path: Path) -> str:
    """Return the name of the archive's pickle, once its directory has been found in order."""
    members = archive.infolist()
    names = [member.filename for member in members]
    root = names[0].partition("/")[0] if names else ""
    pickle = f"{root}/data.pkl"
    size = path.stat().st_size
    if f"{root}/constants.pkl" in names:
        raise CheckpointError(f"{path}: is a TorchScript program, not weights; export its state_dict")
    if pickle not in names:
        raise CheckpointError(f"{path}: is a zip archive without weights (no data.pkl); unpack it first")
    packed = any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members)
    faults = {
        "repeated names": len(set(names)) != len(names),
        "names outside its folder": any(name.partition("/")[0] != root or ".." in name for name in names),
        "compressed or encrypted members": packed,
        "members larger than the file": sum(member.file_size for member in members) > size,
        f"more than {MAX_MEMBERS} members": len(members) > MAX_MEMBERS,
        f"a pickle beyond {MAX_PICKLE_BYTES} bytes": archive.getinfo(pickle).file_size > MAX_PICKLE_BYTES,
        "bytes in front of its first member": min(member.header_offset for member in members) != 0,
        "bytes behind its end": bool(archive.comment) or not _ends_with_directory(path, size),
    }
    found = [fault for fault, is_there in faults.items() if is_there]
    if found:
        raise CheckpointError(f"{path}: the archive has {', '.join(found)}, which torch never writes")
    return pickle


def _ends_with_directory(path: Path, size: int) -> bool:
    """Tell whether the end-of-directory record, 22 bytes without a comment, is the end of the file."""
    with path.open("rb") as file:
        file.seek(max(size - 22, 0))
        return file.read(4) == b"PK\x05\x06"
