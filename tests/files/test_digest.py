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
