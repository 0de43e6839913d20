"""A file is opened with its tensors as stored, and with what it says of itself."""

import subprocess
import sys

import pytest
from checkpoint_files import is_mapped, same, saved, weights
from safetensors.torch import save_file

from ldm.checkpoint.opened import open_weights
from ldm.checkpoint.sniff import Container
from ldm.errors import CheckpointError, DamagedCheckpointError

LEGACY = {"_use_new_zipfile_serialization": False}


def test_safetensors_come_with_their_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(weights(), path, metadata={"format": "pt", "sd.prediction": "v"})
    opened = open_weights(path)
    assert opened.path == path and opened.files == [path] and opened.configs == {}
    assert opened.container is Container.SAFETENSORS
    assert opened.metadata == {"format": "pt", "sd.prediction": "v"}
    assert opened.parts.keys() == {""} and same(opened.parts[""], weights())
    assert is_mapped(opened.parts[""]["model.diffusion_model.a.weight"])
    save_file(weights(), path)
    assert open_weights(str(path)).metadata == {}


@pytest.mark.parametrize("options, container", [({}, Container.ZIP), (LEGACY, Container.PICKLE)])
def test_training_files_come_with_their_counters(options, container, tmp_path):
    path = tmp_path / "model.ckpt"
    content = {"state_dict": weights(), "global_step": 470_000, "epoch": 4, "lr": 0.1, "done": True}
    path.write_bytes(saved(content, **options))
    opened = open_weights(path)
    assert opened.container is container and same(opened.parts[""], weights())
    assert opened.metadata == {"global_step": "470000", "epoch": "4"}
    path.write_bytes(saved(weights() | {"epoch": weights()["betas"]}, **options))
    assert open_weights(path).metadata == {}


def test_a_shard_is_no_model(tmp_path):
    path = tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors"
    save_file(weights(), path)
    with pytest.raises(CheckpointError, match=r"is one of 3 shards; give the folder .*test_a_shard"):
        open_weights(path)
    whole = path.rename(tmp_path / "model-00001-of-00001.safetensors")
    assert same(open_weights(whole).parts[""], weights())


def test_a_file_has_no_variants(tmp_path):
    save_file(weights(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="is one file, so it has no variant 'fp16'"):
        open_weights(tmp_path / "a.safetensors", variant="fp16")


def test_what_a_library_says_becomes_one_line(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(saved(weights())[:1000])
    with pytest.raises(DamagedCheckpointError) as caught:
        open_weights(tmp_path / "a.ckpt")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{tmp_path / 'a.ckpt'}: ")


def test_importing_the_package_imports_no_torch():
    code = "import sys, ldm.checkpoint, ldm.checkpoint.opened, ldm.checkpoint.folder; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "safetensors"}.isdisjoint(run.stdout.split())
