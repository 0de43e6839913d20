"""The demo folder gets the model, its configuration and the judge's image tower."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[2] / "scripts/data/ship_demo.py"


def ship(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def test_runs_become_the_demo_folder(tmp_path):
    diffusion, clip, out = tmp_path / "diffusion", tmp_path / "clip", tmp_path / "demo"
    diffusion.mkdir()
    clip.mkdir()
    weights = {"model.diffusion_model.out.2.bias": torch.arange(4.0)}
    save_file(weights, diffusion / "model.safetensors")
    (diffusion / "model.yaml").write_text("# as exported\nmodel:\n  target: a.b\n")
    save_file({"visual.proj": torch.ones(2), "ln_final.bias": torch.ones(3)}, clip / "clip.safetensors")

    done = ship("--diffusion", diffusion, "--clip", clip, "--out", out)

    assert done.returncode == 0, done.stderr
    assert torch.equal(*(load_file(p)["model.diffusion_model.out.2.bias"]
                         for p in (out / "emoji.safetensors", diffusion / "model.safetensors")))  # fmt: skip
    assert list(load_file(out / "emoji_clip_image.safetensors")) == ["visual.proj"]
    text = (out / "emoji.yaml").read_text()
    assert text.startswith("# python scripts/txt2img.py") and text.endswith("model:\n  target: a.b\n")


def test_an_unfinished_run_ships_nothing(tmp_path):
    done = ship("--diffusion", tmp_path, "--clip", tmp_path, "--out", tmp_path / "demo")
    assert done.returncode == 2
    assert "model.safetensors is not there" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "demo").exists()
