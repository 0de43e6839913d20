"""A model as its difference from another is read as the whole model, wherever weights are read."""

import json

import pytest
import torch
from checkpoint_files import is_mapped
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_model

from demo.ship_demo import description, difference
from ldm.checkpoint import identify, load_checkpoint
from ldm.checkpoint.conversion import convert
from ldm.checkpoint.delta import base_of, completed
from ldm.checkpoint.merge import read_source
from ldm.checkpoint.opened import open_weights
from ldm.errors import CheckpointError, WrongModelError
from ldm.loading import load_model, load_part


@pytest.fixture
def files(tmp_path):
    """Write a base and a model tuned from it; return both as tensors, and the delta's path."""
    base = {name: torch.randn(4, 4) for name in ("kept", "tuned", "grown", "gone")} | {"half": torch.ones(2)}
    grown = torch.cat([base["grown"], torch.zeros(4, 1)], dim=1)
    tuned = {"kept": base["kept"], "tuned": base["tuned"] + 1, "grown": grown, "new": torch.ones(3)}
    tuned["half"] = base["half"].half()
    save_file(base, tmp_path / "base.safetensors")
    differing, absent = difference(tuned, base)
    about = {"sd.prediction": "v", **description(tmp_path / "base.safetensors", absent)}
    save_file(differing, tmp_path / "delta.safetensors", about)
    return base, tuned, tmp_path / "delta.safetensors"


def test_base_and_delta_give_the_model_back(files):
    _, tuned, path = files
    delta = load_file(path)
    assert sorted(delta) == ["grown", "half", "new", "tuned"]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    base = base_of(path, metadata)
    whole, about = completed(path, delta, metadata, load_file(base), {})
    assert about == {"sd.prediction": "v"}
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
    with pytest.raises(CheckpointError, match="put that file next to it"):
        base_of(path, metadata)


def test_a_plain_file_has_no_base(files):
    assert base_of(files[2], {"format": "pt"}) is None


@pytest.mark.parametrize("absent", ["{", '"model"', "[1]"])
def test_a_list_of_absent_names_that_is_none(files, absent):
    path = files[2]
    about = description(path.with_name("base.safetensors"), []) | {"sd.absent": absent}
    save_file({"new": torch.ones(1)}, path, about)
    with pytest.raises(CheckpointError, match="sd.absent is no list of names"):
        load_checkpoint(path)


def test_a_delta_of_a_delta_is_refused(files, tmp_path):
    second = tmp_path / "second.safetensors"
    save_file({"new": torch.ones(1)}, second, description(files[2], []))
    for read in (load_checkpoint, identify):
        with pytest.raises(CheckpointError, match="delta.safetensors, which is one itself; first make that"):
            read(second)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Write a tiny text-to-image model, and an inpainting one with its other parts, whole and as a delta."""
    folder = tmp_path_factory.mktemp("delta")
    base = tiny_model(tiny_config("sd2-v", folder)).state_dict()
    save_file(base, folder / "base.safetensors", {"sd.prediction": "v"})
    config = tiny_config("inpaint", folder)
    state = tiny_model(config, seed=1).state_dict()
    state |= {name: x for name, x in base.items() if name.startswith(("first_stage", "cond_stage"))}
    save_file(state, folder / "whole.safetensors", {"sd.prediction": "eps"})
    differing, absent = difference(state, base)
    about = {"sd.prediction": "eps", **description(folder / "base.safetensors", absent)}
    save_file(differing, folder / "delta.safetensors", about)
    return folder, config, state


def test_a_delta_loads_as_the_whole_model_does(tuned):
    folder, config, state = tuned
    model = load_model(config, folder / "delta.safetensors", "cpu", "float32")
    assert all(torch.equal(x, state[name]) for name, x in model.named_parameters())
    opened = open_weights(folder / "delta.safetensors")
    assert opened.metadata == {"sd.prediction": "eps"}
    assert opened.files == [folder / "delta.safetensors", folder / "base.safetensors"]
    assert all(is_mapped(x) for x in opened.parts[""].values())


def test_a_part_of_a_delta_may_lie_in_the_base(tuned, tmp_path):
    folder, _, state = tuned
    model = tiny_model(tiny_config("sd2-v", tmp_path), seed=2)
    load_part(model, folder / "delta.safetensors", "first_stage_model")
    name = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(model.first_stage_model.decoder.conv_in.weight, state[name])


def test_a_delta_is_told_by_the_whole_model(tuned):
    folder, _, _ = tuned
    delta, whole = (identify(folder / f"{name}.safetensors") for name in ("delta", "whole"))
    assert delta.sentence() == whole.sentence() and delta.task == "inpaint" and delta.prediction == "eps"
    assert delta.parameters == whole.parameters and delta.dtypes == whole.dtypes
    said = " ".join(delta.notes)
    assert "the file holds what differs from base.safetensors (" in said
    assert "difference" not in " ".join(whole.notes)


def test_what_a_delta_predicts_is_compared_with_the_configuration(tuned, tmp_path):
    folder, config, _ = tuned
    described = json.loads(config.read_text())
    described["model"]["params"]["parameterization"] = "v"
    other = tmp_path / "v.yaml"
    other.write_text(json.dumps(described))
    with pytest.raises(WrongModelError, match="predicts eps"):
        load_model(other, folder / "delta.safetensors", "cpu", "float32")


def test_a_converted_delta_stands_alone(tuned, tmp_path):
    folder, _, state = tuned
    convert(folder / "delta.safetensors", tmp_path / "alone.safetensors")
    alone = open_weights(tmp_path / "alone.safetensors")
    assert "sd.base" not in alone.metadata and alone.files == [tmp_path / "alone.safetensors"]
    assert alone.parts[""].keys() == state.keys()
    assert all(torch.equal(x, state[name]) for name, x in alone.parts[""].items())


def test_a_merge_takes_the_whole_model_and_notes_both_files(tuned):
    folder, _, state = tuned
    source = read_source(folder / "delta.safetensors")
    assert source.tensors.keys() == state.keys()
    assert [file.name for file in source.files] == ["delta.safetensors", "base.safetensors"]
