"""Files and folders whose names are not UTF-8 are read and written like any other."""

import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file
from script_files import REPOSITORY, run_script

from ldm.checkpoint import identify
from ldm.imaging.metadata import read_record

DEMO = REPOSITORY / "configs" / "demo"
TINY = ("--H", 64, "--W", 64, "--steps", 2, "--n_samples", 1, "--n_iter", 1, "--no-grid", "--prompt", "a cat")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")


def _odd(folder, text):
    return folder / os.fsdecode(text.encode("latin-1"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Return a folder with the demo model, an image and its configuration, all under odd names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = _odd(tmp_path, "dossier-é")
    folder.mkdir()
    for file in (*DEMO.glob("*.json"), *DEMO.glob("*.txt*")):
        shutil.copy(file, folder)
    shutil.copy(DEMO / "emoji.safetensors", _odd(folder, "modèle.safetensors"))
    shutil.copy(DEMO / "emoji.yaml", _odd(folder, "modèle.yaml"))
    return folder


def test_an_image_is_made_and_made_again(files, capfd):
    out, weights = _odd(files, "sortie-é"), _odd(files, "modèle.safetensors")
    flags = "--ckpt", weights, "--config", _odd(files, "modèle.yaml"), "--outdir", out
    assert run_script("txt2img.py", *TINY, *flags, "--save-latents") == 0
    first = out / "samples" / "00000.png"
    assert read_record(first)["model"]["checkpoint"] == weights.name
    shutil.move(first, _odd(files, "là.png"))
    assert run_script("img2img.py", *TINY, *flags, "--init-img", _odd(files, "là.png")) == 0
    assert run_script("txt2img.py", "--latents", first.with_suffix(".latents.safetensors"), *flags) == 0
    assert run_script("rerun.py", _odd(files, "là.png"), "--files", files) == 0
    said = capfd.readouterr()
    assert "Traceback" not in said.err and "error" not in said.err
    assert "mod\\udce8le.safetensors" in said.out and "equal" in said.out


@pytest.mark.parametrize("name", ["modèle.safetensors", "modèle.ckpt", "modèle.pt"])
def test_weights_are_identified_and_converted(name, tmp_path, capfd):
    weights = {"first_stage_model.decoder.conv_in.weight": torch.ones(2, 2, 3, 3)}
    if name.endswith("safetensors"):
        save_file(weights, tmp_path / "plain")
    else:
        torch.save(weights, tmp_path / "plain", _use_new_zipfile_serialization=name.endswith("ckpt"))
    odd, result = _odd(tmp_path, name), _odd(tmp_path, "où.safetensors")
    (tmp_path / "plain").rename(odd)
    assert run_script("identify.py", odd, "--hash") == run_script("identify.py", odd, "--json") == 0
    assert run_script("convert.py", odd, result) == 0
    assert identify(result).kind == "vae"
    assert run_script("identify.py", _odd(tmp_path, "là.ckpt")) == 2
    said = capfd.readouterr()
    assert "Traceback" not in said.err and "damaged" not in said.err
    assert said.err.splitlines()[-1].startswith("error: ") and "there is no such file" in said.err
