"""Read torch's pickled files (.ckpt, .pt, .pth) through its restricted unpickler, and never any other way.

Before that the pickle is interpreted symbolically: the names that it would import are compared with an
allow-list of our own, shorter than torch's, and what it claims with what the file holds. A zip archive is
checked for what a loader must not meet: compressed members (a small file that unpacks to gigabytes), repeated
names, a second directory, bytes outside the archive.
"""

import io
import re
import struct
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from ldm.checkpoint.pickle_stubs import is_plain, refused, stubs
from ldm.checkpoint.sniff import Container, damaged, shown
from ldm.checkpoint.stored import Stored
from ldm.checkpoint.symbolic_pickle import SymbolicUnpickler, nameless, walk
from ldm.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError, UnsafeCheckpointError
from ldm.files.reading import ADVICE, name_in_utf8, reading
from ldm.wording import script

SAFE_SINCE = (2, 10)            # before it, a file could corrupt memory all the same: CVE-2026-24747
MAX_PICKLE_BYTES = 16_000_000
MAX_MEMBERS = 100_000
MAX_SHARING, SMALL = 3, 1 << 26     # tied weights share data; a file of a few bytes must not become terabytes
MAGIC = 0x1950A86A20F9469CFC6C  # the first of the old format's pickles
LEGACY_PICKLES = 5              # magic number, protocol, system, content, storage keys; then the raw storages

_allow_list = threading.Lock()  # torch's is one for the whole process


def read_zip(path: Path) -> Any:
    """Return the content of a zip-format file, its tensors mapped from the file."""
    _check_torch(path)
    names = check(path, Container.ZIP).names
    if path.suffix.lower() == ".safetensors":       # torch goes by the name and would not look inside
        with path.open("rb") as file:
            return _load(file, names, path)
    with reading(path), name_in_utf8(path) as name:
        return _load(name, names, path)


def read_legacy(path: Path) -> Any:
    """Return the content of a file in the format that torch wrote before 1.6."""
    _check_torch(path)
    names = check(path, Container.PICKLE).names
    with path.open("rb") as file:
        return _load(file, names, path)


def check(path: Path, container: Container) -> SymbolicUnpickler:
    """Check a file from end to end, without its data and without torch; return what it names and holds.

    Raises:
        CheckpointError: of the kind that reading it would raise.
    """
    symbolic = _check_zip(path) if container is Container.ZIP else _check_legacy(path)
    what = nameless(symbolic.content)
    if what is not None:
        raise NotACheckpointError(f"{path}: holds {what}, expected named tensors")
    held = sum(symbolic.storages.values())
    claimed = sum(leaf.nbytes for _, leaf in walk(symbolic.content) if isinstance(leaf, Stored))
    if claimed > MAX_SHARING * held + SMALL:
        raise DamagedCheckpointError(
            f"{path}: claims more than it holds: tensors of {claimed / 1e6:,.0f} MB that share "
            f"{held / 1e6:,.1f} MB of data; get it from its author again"
        )
    return symbolic


def _check_zip(path: Path) -> SymbolicUnpickler:
    with path.open("rb") as file:
        try:
            pickle, sizes = _checked_archive(file, path)
        except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError) as error:
            raise damaged(path)(str(error)[:100]) from error
    symbolic = SymbolicUnpickler()
    _load_symbols(symbolic, io.BytesIO(pickle), path)
    for key, claimed in symbolic.storages.items():
        if sizes.get(key) != claimed:
            raise DamagedCheckpointError(
                f"{path}: claims {claimed} bytes of data {key[:20]!r} and has {sizes.get(key, 'none')}; "
                "download it again"
            )
    return symbolic


def _check_legacy(path: Path) -> SymbolicUnpickler:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
        symbolic = SymbolicUnpickler()
        _load_symbols(symbolic, head, path)
        if symbolic.results[0] != MAGIC:
            raise NotACheckpointError(f"{path}: is a pickle, but no weights; give a .ckpt or .safetensors")
        for _ in range(LEGACY_PICKLES - 1):
            _load_symbols(symbolic, head, path)
        expected = head.tell() + sum(8 + claimed for claimed in symbolic.storages.values())
        if size < expected:
            raise DamagedCheckpointError(f"{path}: is truncated: {size} of {expected} bytes; get it again")
        if size > expected:
            raise DamagedCheckpointError(f"{path}: has {size - expected} bytes behind its end; get it again")
    return symbolic


def _check_torch(path: Path) -> None:
    import torch

    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    if version < SAFE_SINCE:
        wanted = ".".join(map(str, SAFE_SINCE))
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot read pickled checkpoints safely; "
            f"install torch {wanted} or newer, or give a .safetensors file"
        )


def _load_symbols(symbolic: SymbolicUnpickler, pickle: BinaryIO, path: Path) -> None:
    """Rehearse one pickle; what it names is judged before what is wrong with it."""
    fault = None
    try:
        symbolic.load(pickle)
    except CheckpointError as error:
        fault = error
    bad = refused(symbolic.names)
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UnsafeCheckpointError(
            f"{path}: refused, it names {', '.join(map(shown, bad[:5]))}{more}, which no weights need; "
            "nothing was executed; ask its author for the state_dict alone, as .safetensors"
        )
    odd = sorted(name for name in symbolic.names if not is_plain(name))
    if odd:
        raise NotACheckpointError(
            f"{path}: holds tensors that are not plain ({', '.join(odd[:3])}); only dense floating-point and "
            "integer weights can be read"
        )
    if fault:
        raise type(fault)(f"{path}: {fault}") from fault


def _load(source: Path | BinaryIO, names: set[str], path: Path) -> Any:
    """Let torch read a file that was checked: mapped where it gets the path, in whole where an open file."""
    import torch

    mmap = isinstance(source, Path)
    advice = ADVICE if mmap else f"{ADVICE}, or convert it there: {script('convert')} IN OUT.safetensors"
    with reading(path, damaged(path), advice), _allow_list, torch.serialization.safe_globals(stubs(names)):
        return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)


def _checked_archive(file: BinaryIO, path: Path) -> tuple[bytes, dict[str, int]]:
    """Return the archive's pickle and the size of each data member, once its directory is found in order."""
    size = path.stat().st_size
    start, entries = _directory(file, size)
    if entries > MAX_MEMBERS:
        raise DamagedCheckpointError(f"{path}: the archive has more than {MAX_MEMBERS} members")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        root = names[0].partition("/")[0] if names else ""
        pickle = f"{root}/data.pkl"
        if names and all(name.endswith(".npy") for name in names):
            raise NotACheckpointError(f"{path}: is a zip of numpy arrays; give a .ckpt or .safetensors")
        if f"{root}/constants.pkl" in names:
            raise NotACheckpointError(f"{path}: is a TorchScript program, not weights; export its state_dict")
        if pickle not in names:
            raise NotACheckpointError(f"{path}: is a zip archive without weights (no data.pkl)")
        packed = any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members)
        faults = {
            "repeated names": len({name.lower() for name in names}) != len(names),  # torch ignores the case
            "names outside its folder": any(name.partition("/")[0] != root or ".." in name for name in names),
            "compressed or encrypted members": packed,
            "members larger than the file": sum(member.file_size for member in members) > size,
            f"a pickle beyond {MAX_PICKLE_BYTES} bytes": archive.getinfo(pickle).file_size > MAX_PICKLE_BYTES,
            "bytes in front of its first member": min(member.header_offset for member in members) != 0,
            "a second directory, or bytes behind its end": archive.start_dir != start,
        }
        found = [fault for fault, is_there in faults.items() if is_there]
        if found:
            raise DamagedCheckpointError(f"{path}: the archive has {', '.join(found)}, as torch never writes")
        prefix = f"{root}/data/"
        sizes = {
            name.removeprefix(prefix): member.file_size
            for name, member in zip(names, members, strict=True)
            if name.startswith(prefix)
        }
        return _stored(file, archive.getinfo(pickle), path), sizes


def _stored(file: BinaryIO, member: zipfile.ZipInfo, path: Path) -> bytes:
    """Return an uncompressed member; torch can be told to write no checksum, which then is 0."""
    file.seek(member.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", file.read(4))
    file.seek(name_length + extra_length, 1)
    content = file.read(member.file_size)
    if member.CRC and zlib.crc32(content) != member.CRC:
        raise DamagedCheckpointError(f"{path}: its list of tensors is damaged (checksum); download it again")
    return content


def _directory(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return where the archive's directory starts, and its number of entries, from the file's last 22 bytes.

    Readers differ in where they look for it; where there is but one, right before its end records and those
    right at the end of the file, they agree.
    """
    file.seek(max(size - 98, 0))
    tail = file.read(98)
    if tail[-22:-18] != b"PK\x05\x06":
        file.seek(max(size - 65_557, 0))
        if b"PK\x05\x06" in file.read():
            raise DamagedCheckpointError(f"{file.name}: has bytes behind its end; download it again")
        raise DamagedCheckpointError(f"{file.name}: is truncated: its end is missing; download it again")
    entries, length, start, comment = struct.unpack("<HLLH", tail[-12:])
    end = size - 22
    if tail[-42:-38] == b"PK\x06\x07":             # records for more than 4 GB, which torch always writes
        end -= 20 + 56
        if tail[:4] != b"PK\x06\x06" or struct.unpack("<Q", tail[-34:-26])[0] != end:
            raise DamagedCheckpointError(f"{file.name}: its directory is damaged; download it again")
        entries, length, start = struct.unpack("<QQQ", tail[32:56])
    if comment or start + length != end:
        raise DamagedCheckpointError(f"{file.name}: has a second directory, or bytes behind its end")
    return start, entries
