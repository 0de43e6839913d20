"""Every way a download goes wrong gives one line that says which; nothing else ever comes out."""

import json
import random
import time
import zipfile

import pytest
import torch
from checkpoint_files import safetensors_with, saved, weights, zip_with
from safetensors.torch import save

from ldm.checkpoint import load_checkpoint
from ldm.errors import CheckpointError

LEGACY = {"_use_new_zipfile_serialization": False}
FORMATS = {"zip": saved(weights()), "legacy": saved(weights(), **LEGACY), "safetensors": save(weights())}
SMALL = {"w": torch.ones(3)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4265380512\n"


def _fails(path, *expected):
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert time.process_time() - started < 1
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert all(part in message for part in expected), message


@pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "is empty"),
        (b"1234567", "is no checkpoint (7 bytes"),
        (b"\n<!DOCTYPE html>\n<html><body>404</body></html>", "HTML page"),
        (b"<html>", "HTML page"),
        (POINTER, "git-lfs pointer, not the file of 4.27 GB"),
        (b'{"error": "not found"}', "JSON text"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\x80\x02]q\x00.", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"PK\x03\x04", "damaged"),
        (bytes(1000), "is no checkpoint (1000 bytes"),
    ],
)
def test_what_is_no_checkpoint(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    _fails(tmp_path / name, expected)


def test_folder_and_absence(tmp_path):
    _fails(tmp_path, "is a folder")
    _fails(tmp_path / "absent.ckpt", "no such file")


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_at_every_byte(kind, tmp_path):
    path = tmp_path / "model.ckpt"
    whole = {"zip": saved(SMALL), "legacy": saved(SMALL, **LEGACY), "safetensors": save(SMALL)}[kind]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_behind_the_end(kind, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(FORMATS[kind] + b"surplus")
    _fails(tmp_path / "a.ckpt", "behind its end")


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
            load_checkpoint(path)
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_compressed_archives_are_refused(tmp_path):
    path = zip_with(b"\x80\x02}.", tmp_path / "a.ckpt", {"data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    _fails(path, "compressed")


def test_archives_that_are_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("model.ckpt", b"x")
    _fails(tmp_path / "a.zip", "no data.pkl")
    _fails(zip_with(b"\x80\x02}.", tmp_path / "b.pt", {"constants.pkl": b"\x80\x02)."}), "TorchScript")
    _fails(zip_with(b"\x80\x02}.", tmp_path / "c.pt", {"../../x": b""}), "outside its folder")
    with pytest.warns(UserWarning, match="Duplicate"):
        path = zip_with(b"\x80\x02}.", tmp_path / "d.pt", {"data.pkl": b"\x80\x02}."})
    _fails(path, "repeated names")
    archive = zip_with(b"\x80\x02}.", tmp_path / "e.pt").read_bytes()
    (tmp_path / "e.pt").write_bytes(b"PK\x03\x04" + archive)
    _fails(tmp_path / "e.pt", "in front")


def test_tensors_that_no_model_takes(tmp_path):
    path = tmp_path / "a.ckpt"
    for content, expected in [
        ({"w": torch.zeros(1).expand(100_000, 100_000)}, "less data than its shape"),
        ({"w": torch.zeros(3, dtype=torch.complex64)}, "ComplexFloatStorage"),
        ({"w": torch.ones(3).to_sparse()}, "refused"),
        ({1: torch.zeros(3)}, "must be text"),
        ({"model": {"w": torch.zeros(3)}}, "no weights, only 'model'"),
        ({}, "no weights, only nothing"),
        ([torch.zeros(3)], "holds a list"),
        (torch.zeros(3), "holds a Tensor"),
        (5, "holds a int"),
    ]:
        path.write_bytes(saved(content))
        _fails(path, expected)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header, data, expected",
    [
        (b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}, "a": {"dtype":"I32","shape":[2],'
         b'"data_offsets":[0,8]}}', bytes(8), "stands there twice"),
        ({"a": ENTRY}, bytes(4), "truncated: "),
        ({"a": ENTRY}, bytes(12), "behind its end"),
        ({"a": ENTRY | {"shape": [3]}}, bytes(8), "damaged"),
        ({"a": ENTRY, "b": ENTRY | {"data_offsets": [4, 12]}}, bytes(12), "damaged"),
        ({"a": ENTRY | {"dtype": "X9"}}, bytes(8), "damaged"),
        ({"a": ENTRY | {"data_offsets": [0, "x"]}}, bytes(8), "damaged"),
        ({"a": 3}, bytes(8), "damaged"),
        ({}, b"", "no weights"),
        (b"{" + b'"a":{' * 100_000, b"", "damaged"),
        (b"{" + b"[" * 100_000, b"", "damaged"),
    ],
)
def test_headers_of_safetensors(header, data, expected, tmp_path):
    _fails(safetensors_with(header, data, tmp_path / "a.safetensors"), expected)


def test_huge_headers_are_not_even_read(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + b"{")
    _fails(path, "header claims")
    path.write_bytes((10**6).to_bytes(8, "little") + b"{}")
    _fails(path, "truncated in its header")
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    text = json.dumps({f"t{i}": empty for i in range(100_001)}, separators=(",", ":")).encode()
    _fails(safetensors_with(text, b"", path), "more than 100000 tensors")
