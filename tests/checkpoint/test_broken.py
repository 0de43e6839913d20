"""Every way a download goes wrong gives one line that says which; nothing else ever comes out."""

import errno
import io
import json
import os
import pickle
import random
import struct
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import (
    call,
    legacy_with,
    safetensors_with,
    same,
    saved,
    stored,
    tensor,
    weights,
    zip_with,
)
from safetensors.torch import save

from ldm.checkpoint import identify
from ldm.errors import CheckpointError, DamagedCheckpointError, NotACheckpointError, OutOfMemory

LEGACY = {"_use_new_zipfile_serialization": False}
FORMATS = {"zip": saved(weights()), "legacy": saved(weights(), **LEGACY), "safetensors": save(weights())}
SMALL = {"w": torch.ones(3)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4265380512\n"
DICT_OF_W = b"\x80\x02}X\x01\x00\x00\x00w"      # and a value, and b"s."
REAL_DIRECTORY = b"PK\x05\x06" + bytes(18)


def _fails(path, error_class, *expected):
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        stored(path)
    assert time.process_time() - started < 20       # an attack takes minutes; a slow machine seconds
    message = str(caught.value)
    assert type(caught.value) is error_class, (type(caught.value), message)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 400
    assert all(part in message for part in expected), message


def _numpy_archive():
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
@pytest.mark.parametrize(
    "content, error_class, expected",
    [
        (b"", DamagedCheckpointError, "is empty"),
        (b"1234567", NotACheckpointError, "is no checkpoint (7 bytes"),
        (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", NotACheckpointError, "HTML page"),
        (b"<html>", NotACheckpointError, "HTML page"),
        (POINTER, NotACheckpointError, "git-lfs pointer, not the file of 4.27 GB"),
        (b'{"error": "not found"}', NotACheckpointError, "JSON text"),
        (b"GGUF\x03\x00\x00\x00", NotACheckpointError, "GGUF"),
        (b"\x1f\x8b\x08\x00", NotACheckpointError, "gzip"),
        (b"7z\xbc\xaf\x27\x1c", NotACheckpointError, "7z"),
        (b"Rar!\x1a\x07", NotACheckpointError, "RAR"),
        (b"\x89PNG\r\n\x1a\n", NotACheckpointError, "PNG"),
        (b"\xff\xd8\xff\xe0", NotACheckpointError, "JPEG"),
        (b"\x89HDF\r\n\x1a\n", NotACheckpointError, "HDF5 (Keras)"),
        (b"\x93NUMPY\x01\x00", NotACheckpointError, "numpy"),
        (_numpy_archive(), NotACheckpointError, "numpy arrays"),
        (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0", NotACheckpointError, "ONNX"),
        (b"\x0a\x1c\x0a\x05input\x12\x0bPlaceholder", NotACheckpointError, "TensorFlow"),
        (b"\x80\x02]q\x00.", NotACheckpointError, "a pickle, but no weights"),
        (b"\x80\x02.", DamagedCheckpointError, "damaged"),
        (b"PK\x03\x04", DamagedCheckpointError, "truncated"),
        (REAL_DIRECTORY, NotACheckpointError, "empty zip"),
        (bytes(1000), NotACheckpointError, "is no checkpoint (1000 bytes"),
    ],
)
def test_what_is_no_checkpoint(name, content, error_class, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    _fails(tmp_path / name, error_class, expected)


def test_folder_and_absence(tmp_path):
    _fails(tmp_path / "absent.ckpt", CheckpointError, "no such file")
    (tmp_path / "empty").mkdir()
    _fails(tmp_path / "empty", NotACheckpointError)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_at_every_byte(kind, tmp_path):
    path = tmp_path / "model.ckpt"
    whole = {"zip": saved(SMALL), "legacy": saved(SMALL, **LEGACY), "safetensors": save(SMALL)}[kind]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError) as caught:
            stored(path)
        # of less than ten bytes nobody can tell what they were the beginning of
        assert type(caught.value) is DamagedCheckpointError or length < 10, (length, str(caught.value))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("tenths", range(10))
def test_truncated_at_every_tenth(kind, tenths, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(FORMATS[kind][: len(FORMATS[kind]) * tenths // 10])
    _fails(tmp_path / "a.ckpt", DamagedCheckpointError)


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_behind_the_end(kind, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(FORMATS[kind] + b"surplus")
    _fails(tmp_path / "a.ckpt", DamagedCheckpointError, "behind its end")


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_two_files_in_one_are_refused(first, second, tmp_path):
    """Whatever reader comes first, a file means one thing: no bytes are left for another reader."""
    (tmp_path / "a.ckpt").write_bytes(FORMATS[first] + FORMATS[second])
    _fails(tmp_path / "a.ckpt", DamagedCheckpointError)


def test_a_tar_that_begins_like_a_pickle(tmp_path):
    head = b"".join(pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("storages")
        archive.addfile(member)
    data = bytearray(buffer.getvalue())
    data[: len(head)] = head
    (tmp_path / "a.ckpt").write_bytes(data)
    _fails(tmp_path / "a.ckpt", NotACheckpointError, "tar archive")


@pytest.mark.parametrize("kind", FORMATS)
def test_random_damage_never_shows_a_library_error(kind, tmp_path):
    generator = random.Random(7)
    path = tmp_path / "model.ckpt"
    for _ in range(300):
        data = bytearray(FORMATS[kind])
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        path.write_bytes(data)
        try:
            stored(path)
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_compressed_archives_are_refused(tmp_path):
    path = zip_with(b"\x80\x02}.", tmp_path / "a.ckpt", {"data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    _fails(path, DamagedCheckpointError, "compressed")


def test_archives_that_are_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.ckpt", b"x")
    _fails(tmp_path / "a.zip", NotACheckpointError, "no data.pkl")
    path = zip_with(b"\x80\x02}.", tmp_path / "b.pt", {"constants.pkl": b"\x80\x02)."})
    _fails(path, NotACheckpointError, "TorchScript")
    path = zip_with(b"\x80\x02}.", tmp_path / "c.pt", {"../../x": b""})
    _fails(path, DamagedCheckpointError, "outside its folder")
    with zipfile.ZipFile(tmp_path / "c2.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("b/data.pkl", b"\x80\x02}.")
    _fails(tmp_path / "c2.pt", DamagedCheckpointError, "outside its folder")
    with pytest.warns(UserWarning):
        path = zip_with(b"\x80\x02}.", tmp_path / "d.pt", {"data.pkl": b"\x80\x02}."})
    _fails(path, DamagedCheckpointError, "repeated names")
    path = zip_with(b"\x80\x02}.", tmp_path / "d2.pt", {"DATA.PKL": b"\x80\x02}."})
    _fails(path, DamagedCheckpointError, "repeated names")
    archive = zip_with(b"\x80\x02}.", tmp_path / "e.pt").read_bytes()
    (tmp_path / "e.pt").write_bytes(b"PK\x03\x04" + archive)
    _fails(tmp_path / "e.pt", DamagedCheckpointError)
    (tmp_path / "f.pt").write_bytes(archive[:-2] + b"\x03\x00" + b"abc")
    _fails(tmp_path / "f.pt", DamagedCheckpointError, "behind its end")


def test_two_directories_in_one_archive(tmp_path):
    """Some readers find a zip's directory by its place, some by its length; here the two disagree."""
    benign = zip_with(b"\x80\x02}.", tmp_path / "a.pt").read_bytes()
    length, start = struct.unpack("<LL", benign[-10:-2])
    directory = benign[start : start + length]
    two = benign[:-22] + directory + benign[-22:]
    (tmp_path / "a.pt").write_bytes(two)
    _fails(tmp_path / "a.pt", DamagedCheckpointError, "second directory")


@pytest.mark.parametrize("where", ["data.pkl", "flags", "encrypted"])
def test_wrong_checksums_and_flags_in_an_archive(where, tmp_path):
    data = bytearray(zip_with(b"\x80\x02}.", tmp_path / "a.pt").read_bytes())
    directory = struct.unpack("<L", data[-6:-2])[0]
    if where == "data.pkl":
        data[directory + 16] ^= 1
    elif where == "flags":
        data[directory + 10] = 99               # a way of packing that does not exist
    else:
        data[directory + 8] |= 1
    (tmp_path / "a.pt").write_bytes(data)
    _fails(tmp_path / "a.pt", DamagedCheckpointError)


def test_tensors_that_no_model_takes(tmp_path):
    path = tmp_path / "a.ckpt"
    plain = NotACheckpointError
    for content, error_class, expected in [
        ({"w": torch.zeros(3, dtype=torch.complex64)}, plain, "ComplexFloatStorage"),
        ({"w": torch.ones(3).to_sparse()}, plain, "_rebuild_sparse_tensor"),
        ({"w": torch.ones(3, device="meta")}, plain, "_rebuild_meta_tensor"),
        ({"w": torch.ones(3).to(torch.float8_e4m3fn)}, plain, "not plain"),
        ({1: torch.zeros(3)}, plain, "must be text"),
        ({"model": {"w": torch.zeros(3)}}, plain, "no weights, only 'model'"),
        ({"a": 1, "b": "text"}, plain, "no weights, only 'a', 'b'"),
        ({}, plain, "no weights, only nothing"),
        ([torch.zeros(3)], plain, "holds a list"),
        (torch.zeros(3, 768), plain, "holds one tensor (3, 768) without a name"),
        (torch.nn.Parameter(torch.zeros(3)), plain, "holds one tensor (3,) without a name"),
        ((torch.zeros(3), 1), plain, "holds a tuple"),
        (5, plain, "holds a number"),
        ("five", plain, "holds a text"),
        (None, plain, "holds nothing"),
    ]:
        path.write_bytes(saved(content))
        _fails(path, error_class, expected)
    for name in ("_rebuild_qtensor", "_rebuild_nested_tensor", "_rebuild_wrapper_subclass"):
        zip_with(b"\x80\x02" + call("torch._utils", name, "x") + b".", path)
        _fails(path, plain, "not plain", name)


NESTED = b"K\x01K\x01\x86q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01"
GROWING = b"X\x04\x00\x00\x00abcdq\x00" + b"c_codecs\nencode\nh\x00X\x03\x00\x00\x00hex\x86Rq\x00" * 40


@pytest.mark.few(10)
@pytest.mark.parametrize("write", [zip_with, legacy_with])
@pytest.mark.parametrize(
    "pickled, error_class, expected",
    [
        (DICT_OF_W + tensor(3, 10**9) + b"s.", DamagedCheckpointError, "more than it holds"),
        (DICT_OF_W + tensor(3, 3, offset=1) + b"s.", DamagedCheckpointError, "more than it holds"),
        (DICT_OF_W + tensor(3, 2, stride=3) + b"s.", DamagedCheckpointError, "more than it holds"),
        (DICT_OF_W + tensor(3, 3, stride=-1) + b"s.", DamagedCheckpointError, "sensible shape"),
        (DICT_OF_W + tensor(3, -3) + b"s.", DamagedCheckpointError, "sensible shape"),
        (DICT_OF_W + tensor(10**9, 3) + b"s.", DamagedCheckpointError, ""),
        (DICT_OF_W + tensor(3, 3) + b"(tbs.", DamagedCheckpointError, "changed after it was made"),
        (b"\x80\x02}" + NESTED + b"s.", DamagedCheckpointError, "nested too deep"),
        (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.", DamagedCheckpointError, "nested too deep"),
        (b"\x80\x02" + GROWING + b".", DamagedCheckpointError, "encoding"),
        (b"\x80\x02}X\xff\xff\xff\xff.", DamagedCheckpointError, "truncated or damaged"),
        (b"\x80\x02" + b"}0" * 200_000 + b".", NotACheckpointError, "POP"),
        (b"\x80\x02](" + b"}" * 300_001 + b"e.", DamagedCheckpointError, "opcodes"),
        (b"\x80\x02" + call("numpy", "dtype", "f4," * 1000) + b".", DamagedCheckpointError, "numpy type"),
        (b"\x80\x04}\x94.", NotACheckpointError, "pickle_protocol=2"),
    ],
)
def test_pickles_that_ask_for_memory_or_time(write, pickled, error_class, expected, tmp_path):
    if write is zip_with:
        path = zip_with(pickled, tmp_path / "a.ckpt", {"data/0": bytes(12)})
    else:
        path = legacy_with(pickled, tmp_path / "a.ckpt", (("0", bytes(12)),))
    _fails(path, error_class, expected)


@pytest.mark.parametrize("order", ["little", "big"])
def test_the_order_of_bytes_is_what_the_file_says(order, tmp_path):
    numbers = struct.pack({"little": "<3f", "big": ">3f"}[order], 1, 2, 3)
    path = zip_with(DICT_OF_W + tensor(3, 3) + b"s.", tmp_path / "a.ckpt", {"data/0": numbers}, order=order)
    assert stored(path)["w"].tolist() == [1, 2, 3]


def test_an_unknown_order_of_bytes(tmp_path):
    path = zip_with(DICT_OF_W + tensor(3, 3) + b"s.", tmp_path / "a.ckpt", {"data/0": bytes(12)}, order="odd")
    _fails(path, DamagedCheckpointError, "odd")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
NEXT = ENTRY | {"data_offsets": [8, 16]}


@pytest.mark.parametrize(
    "header, data, expected",
    [
        (b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": {"dtype":"I32","shape":[2],'
         b'"data_offsets":[0,8]}}', bytes(8), "stands there twice"),
        ({"a": ENTRY}, bytes(4), "truncated: "),
        ({"a": ENTRY}, bytes(12), "behind its end"),
        ({"a": ENTRY | {"shape": [3]}}, bytes(8), "another size"),
        ({"a": ENTRY | {"shape": [2**62, 4]}}, bytes(8), "another size"),
        ({"a": ENTRY | {"shape": [-2]}}, bytes(8), "no row of counts"),
        ({"a": ENTRY | {"shape": [True, 2]}}, bytes(8), "no row of counts"),
        ({"a": ENTRY | {"shape": 2}}, bytes(8), "damaged"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}}, bytes(12), "overlaps"),
        ({"a": ENTRY, "b": ENTRY}, bytes(8), "overlaps"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 20]}}, bytes(20), "gap"),
        ({"a": NEXT}, bytes(16), "gap"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, bytes(8), "another size"),
        ({"a": ENTRY | {"data_offsets": [-8, 0]}}, bytes(8), "no row of counts"),
        ({"a": ENTRY | {"dtype": "X9"}}, bytes(8), "dtype"),
        ({"a": ENTRY | {"data_offsets": [0, "x"]}}, bytes(8), "damaged"),
        ({"a": ENTRY | {"data_offsets": [0]}}, bytes(8), "damaged"),
        ({"a": 3}, bytes(8), "damaged"),
        ({"__metadata__": {"a": 1}, "a": ENTRY}, bytes(8), "metadata"),
        ({"__metadata__": [1], "a": ENTRY}, bytes(8), "damaged"),
        (b"{" + b'"a":{' * 100_000, b"", "damaged"),
        (b"{" + b"[" * 100_000, b"", "damaged"),
        (b'{"a":' + b"[" * 9 + b"1" * 5000 + b"]" * 9 + b"}", b"", "damaged"),
        (json.dumps({"a": ENTRY}).encode("utf-16-le"), bytes(8), ""),
        (b'{"\xff": 1}', b"", "damaged"),
        (b'{"a":[' + b"[]," * 2_600_000 + b"[]]}", b"", "more lists"),
        (b'{"a":[' + b"1," * 3_900_000 + b"1]}", b"", "more numbers"),
        (b'{"a":[' + b'"",' * 2_600_000 + b'""]}', b"", "more texts"),
    ],
)
def test_headers_of_safetensors(header, data, expected, tmp_path):
    _fails(safetensors_with(header, data, tmp_path / "a.safetensors"), DamagedCheckpointError, expected)


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    for name in ("a\nb", "\x1b[2J", "\u2028", "n" * 10_000):
        header = {name: ENTRY | {"dtype": "F8_E4M3", "shape": [8]}}
        _fails(safetensors_with(header, bytes(8), tmp_path / "a"), NotACheckpointError, "float8")


def test_a_header_without_tensors(tmp_path):
    _fails(safetensors_with({}, b"", tmp_path / "a.safetensors"), NotACheckpointError, "no weights")


def test_huge_headers_are_not_even_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((9 * 10**6).to_bytes(8, "little") + b"{")
    _fails(path, DamagedCheckpointError, "header claims")
    path.write_bytes((2**63).to_bytes(8, "little") + b"{")
    _fails(path, NotACheckpointError, "is no checkpoint")
    path.write_bytes((10**6).to_bytes(8, "little") + b"{}")
    _fails(path, DamagedCheckpointError, "truncated in its header")
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"t{i}": empty for i in range(20_001)}, separators=(",", ":")).encode()
    _fails(safetensors_with(text, b"", path), DamagedCheckpointError, "more than 20000 tensors")


@pytest.mark.parametrize("name", ["a.ckpt", "old.ckpt", "a.safetensors"])
@pytest.mark.parametrize(
    "raised, expected",
    [
        (MemoryError(), OutOfMemory),
        (OSError(errno.EIO, os.strerror(errno.EIO)), OSError),
        (RuntimeError("unable to mmap: Cannot allocate memory (12)"), OutOfMemory),
        (RuntimeError("PytorchStreamReader failed"), DamagedCheckpointError),
    ],
)
def test_the_machine_is_not_taken_for_the_file(name, raised, expected, tmp_path, monkeypatch):
    content = FORMATS["safetensors" if name.endswith("s") else "legacy" if name == "old.ckpt" else "zip"]
    (tmp_path / name).write_bytes(content)

    def fails(*args, **kwargs):
        raise raised

    monkeypatch.setattr(torch, "load", fails)
    monkeypatch.setattr("safetensors.safe_open", fails)
    with pytest.raises(expected) as caught:
        stored(tmp_path / name)
    assert type(caught.value) is expected and str(tmp_path / name) in str(caught.value)


def test_a_defect_of_ours_is_not_taken_for_damage(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(FORMATS["safetensors"])
    defect = ZeroDivisionError("a defect")

    def fails(*args):
        raise defect

    monkeypatch.setattr("ldm.checkpoint.tensors.only_tensors", fails)
    monkeypatch.setattr("ldm.checkpoint.identification.classify", fails)
    for read in (stored, identify):
        with pytest.raises(ZeroDivisionError):
            read(tmp_path / "a.safetensors")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of memory are POSIX")
@pytest.mark.parametrize("name", ["old.ckpt", "a.safetensors"])
def test_a_limit_of_memory_is_told(name, tmp_path):
    import resource

    size = 1 << 31
    if name == "old.ckpt":
        pickled = b"\x80\x02}X\x01\x00\x00\x00w" + tensor(size // 4, size // 4) + b"s."
        file = legacy_with(pickled, tmp_path / name, (("0", b""),))
        content = file.read_bytes()
        file.write_bytes(content[:-8] + struct.pack("<q", size // 4))
        whole = len(content) + size
    else:
        header = {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
        file = safetensors_with(header, b"", tmp_path / name)
        whole = file.stat().st_size + size
    os.truncate(file, whole)                                # sparse: it takes no room
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), before[1]))
    try:
        with pytest.raises(OutOfMemory, match="out of memory while it was read; free some"):
            stored(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


DATA = torch.zeros(100_000)
CLAIMS = {
    "one value, expanded": {"w": torch.zeros(1).expand(100_000, 100_000)},
    "expanded below a state_dict": {"state_dict": {"w": torch.zeros(1).expand(1 << 30)}, "global_step": 3},
    "a row, expanded": {"w": torch.zeros(1, 1000).expand(100_000, -1)},
    "one tensor by many names": dict.fromkeys(map(str, range(1000)), DATA),
    "overlapping": {str(i): DATA[i : i + 99_000] for i in range(1000)},
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("is_legacy", [False, True])
def test_a_file_that_claims_more_than_it_holds(claim, is_legacy, tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(saved(CLAIMS[claim], **(LEGACY if is_legacy else {})))
    _fails(path, DamagedCheckpointError, "claims more than it holds: tensors of ", " MB of data")
    with pytest.raises(DamagedCheckpointError, match="claims more than it holds"):
        identify(path)


def test_tied_weights_are_no_claim(tmp_path):
    tied = torch.arange(12.0).reshape(3, 4)
    content = {"a": tied, "b": tied, "c": tied.T, "d": tied[1:], "e": tied[:1].expand(5, 4)}
    (tmp_path / "a.ckpt").write_bytes(saved(content))
    assert same(stored(tmp_path / "a.ckpt"), content)
    assert identify(tmp_path / "a.ckpt").dtypes == {"float32": 4 * (12 * 3 + 8 + 20)}
