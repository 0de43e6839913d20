"""A model as its difference from another."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldm.checkpoint.delta import base_of, completed, description, difference
from ldm.errors import CheckpointError


@pytest.fixture
def files(tmp_path):
    """Write a base and a model tuned from it; return both as tensors, and the delta's path."""
    base = {name: torch.randn(4, 4) for name in ("kept", "tuned", "grown", "gone")} | {"half": torch.ones(2)}
    grown = torch.cat([base["grown"], torch.zeros(4, 1)], dim=1)
    tuned = {"kept": base["kept"], "tuned": base["tuned"] + 1, "grown": grown, "new": torch.ones(3)}
    tuned["half"] = base["half"].half()
    save_file(base, tmp_path / "base.safetensors")
    differing, absent = difference(tuned, base)
    save_file(differing, tmp_path / "delta.safetensors", description(tmp_path / "base.safetensors", absent))
    return base, tuned, tmp_path / "delta.safetensors"


def test_base_and_delta_give_the_model_back(files):
    _, tuned, path = files
    delta = load_file(path)
    assert sorted(delta) == ["grown", "half", "new", "tuned"]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    base = base_of(path, metadata)
    whole = completed(delta, metadata, load_file(base))
    assert whole.keys() == tuned.keys()
    assert all(torch.equal(whole[name], x) and whole[name].dtype == x.dtype for name, x in tuned.items())


def test_an_equal_model_has_no_difference(files):
    base, _, _ = files
    assert difference(base, base) == ({}, [])


def test_a_missing_or_another_base_is_refused(files, tmp_path):
    base, _, path = files
    metadata = description(tmp_path / "base.safetensors", [])
    save_file({**base, "kept": base["kept"] + 1}, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match="from another file"):
        base_of(path, metadata)
    (tmp_path / "base.safetensors").unlink()
    with pytest.raises(CheckpointError, match="put that file beside it"):
        base_of(path, metadata)


def test_a_plain_file_has_no_base(files):
    assert base_of(files[2], {"format": "pt"}) is None
