"""The demo folder gets the model, its configuration and the judge's image tower."""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

SCRIPT = Path(__file__).parents[2] / "demo/ship_demo.py"


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


def test_a_task_ships_what_differs_from_the_base(tmp_path):
    run, out = tmp_path / "run", tmp_path / "demo"
    run.mkdir()
    out.mkdir()
    base = {"model.a": torch.arange(4.0), "model.b": torch.zeros(2)}
    tuned = {"model.a": base["model.a"], "model.b": torch.ones(2), "model.new": torch.ones(1)}
    save_file(base, out / "emoji.safetensors")
    save_file(tuned, run / "model.safetensors", {"steps": "7"})
    exported = "model:\n  target: a.b\n  params:\n    parameterization: v\n"
    (run / "model.yaml").write_text(f"# as exported\n{exported}")
    (out / "emoji_inpaint.yaml").write_text("# what it is\n# and how it is used\n\nmodel:\n  target: old\n")

    done = ship("--task", "inpaint", "--diffusion", run, "--out", out)

    assert done.returncode == 0, done.stderr
    with safe_open(out / "emoji_inpaint.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["model.b", "model.new"]
        about = file.metadata()
    assert about["sd.base"] == "emoji.safetensors" and about["steps"] == "7"
    assert about["sd.task"] == "inpaint" and about["sd.prediction"] == "v"
    text = (out / "emoji_inpaint.yaml").read_text()
    assert text == f"# what it is\n# and how it is used\n\n{exported}"

    laid_out = "# what it is\n\nmodel: {target: a.b, params: {parameterization: v}}   # by hand\n"
    (out / "emoji_inpaint.yaml").write_text(laid_out)
    assert ship("--task", "inpaint", "--diffusion", run, "--out", out).returncode == 0
    assert (out / "emoji_inpaint.yaml").read_text() == laid_out
