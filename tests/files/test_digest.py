"""The digest of a weights file: right, remembered, and forgotten when the file changes."""

import hashlib
import os

import pytest

from ldm.files import cache, digest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"weights" * 1000)
    return tmp_path / "model.ckpt"


def test_it_is_the_sha256(weights):
    assert digest.sha256(weights) == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_it_is_computed_once(weights, monkeypatch):
    first = digest.sha256(weights)
    monkeypatch.setattr(digest, "fresh_sha256", lambda path: pytest.fail("hashed again"))
    assert digest.sha256(weights) == first


def test_a_changed_file_is_hashed_again(weights):
    first = digest.sha256(weights)
    weights.write_bytes(b"Weights" * 1000)
    os.utime(weights, ns=(0, 0))
    assert digest.sha256(weights) not in (None, first)


def test_a_damaged_or_unwritable_cache_only_costs_time(weights, tmp_path, monkeypatch):
    first = digest.sha256(weights)
    notes = list((tmp_path / "cache").rglob("*.json"))
    assert notes
    for note in notes:
        note.write_text("{")
    monkeypatch.setattr(cache, "_found", {})
    assert digest.sha256(weights) == first
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert digest.sha256(weights) == first


def test_it_is_computed_once_a_run_without_a_cache_folder(weights, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    first = digest.sha256(weights)
    monkeypatch.setattr(digest, "fresh_sha256", lambda path: pytest.fail("hashed again"))
    assert digest.sha256(weights) == first


def test_in_the_background_it_waits_and_never_raises(weights, tmp_path):
    assert digest.sha256_in_background(weights)() == digest.sha256(weights)
    assert digest.sha256_in_background(tmp_path / "missing")() is None


def _replaced(path, content):
    """Write other bytes of the same length at the same time of modification."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("how", ["written over", "another file"])
def test_a_file_changed_behind_its_time_of_modification_is_hashed_again(weights, tmp_path, how):
    assert digest.sha256(weights) == hashlib.sha256(b"weights" * 1000).hexdigest()
    if how == "written over":
        _replaced(weights, b"Weights" * 1000)
    else:
        (tmp_path / "other").write_bytes(b"Weights" * 1000)
        times = weights.stat()
        os.utime(tmp_path / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
        os.replace(tmp_path / "other", weights)
    assert digest.sha256(weights) == hashlib.sha256(b"Weights" * 1000).hexdigest()


def test_a_digest_that_is_asked_for_is_read_and_remembered(weights):
    cache.put(weights, digest.KIND, {"sha256": "0" * 64})
    assert digest.sha256(weights) == "0" * 64
    right = hashlib.sha256(b"weights" * 1000).hexdigest()
    assert digest.sha256(weights, afresh=True) == right
    assert digest.known_sha256(weights) == right


def test_the_digest_of_a_file_that_changes_meanwhile_is_not_kept(weights, monkeypatch):
    def read(path, read=digest.fresh_sha256):
        found = read(path)
        path.write_bytes(b"more")
        return found

    monkeypatch.setattr(digest, "fresh_sha256", read)
    digest.sha256(weights)
    assert digest.known_sha256(weights) is None


def test_a_name_that_is_not_utf8(tmp_path):
    odd = tmp_path / os.fsdecode(b"mod\xe8le.ckpt")
    odd.write_bytes(b"weights")
    assert digest.sha256(odd) == digest.known_sha256(odd) == hashlib.sha256(b"weights").hexdigest()
    assert digest.sha256_in_background(odd)() == hashlib.sha256(b"weights").hexdigest()


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_in_the_background_no_failure_of_the_machine_shows(error, weights, monkeypatch):
    def fails(*args):
        raise error

    monkeypatch.setattr(hashlib, "sha256", fails)
    assert digest.sha256_in_background(weights)() is None


def test_of_a_folder_only_weights_and_json_count(tmp_path):
    for name in ("model_index.json", "unet/config.json", "unet/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    before = digest.digest_of(tmp_path)
    for name in ("notes.txt", ".cache/lock", "out/interrupted-00000.safetensors", "out/samples/00000.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    assert digest.digest_of(tmp_path) == before
    (tmp_path / "unet" / "model.safetensors").write_text("other")
    assert digest.digest_of(tmp_path) != before
