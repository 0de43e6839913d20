"""The demo folder gets the model, its configuration and the judge's image tower."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from script_files import REPOSITORY


@pytest.fixture
def ship(capsys) -> Callable[..., tuple[int, str]]:
    """Run the script in this process: ship("--out", folder) -> exit code and what stderr got."""
    from demo import ship_demo
    from ldm.cli import app

    def run(*arguments: object) -> tuple[int, str]:
        code = app.exit_code(ship_demo.make_parser(), ship_demo.main, [str(value) for value in arguments])
        return code, capsys.readouterr().err

    return run


@pytest.mark.slow
def test_runs_become_the_demo_folder_in_a_process_of_its_own(tmp_path):
    diffusion, clip, out = tmp_path / "diffusion", tmp_path / "clip", tmp_path / "demo"
    diffusion.mkdir()
    clip.mkdir()
    weights = {"model.diffusion_model.out.2.bias": torch.arange(4.0)}
    save_file(weights, diffusion / "model.safetensors")
    (diffusion / "model.yaml").write_text("# as exported\nmodel:\n  target: a.b\n")
    save_file({"visual.proj": torch.ones(2), "ln_final.bias": torch.ones(3)}, clip / "clip.safetensors")

    command = [sys.executable, REPOSITORY / "demo" / "ship_demo.py"]
    command += ["--diffusion", diffusion, "--clip", clip, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert torch.equal(*(load_file(p)["model.diffusion_model.out.2.bias"]
                         for p in (out / "emoji.safetensors", diffusion / "model.safetensors")))  # fmt: skip
    assert list(load_file(out / "emoji_clip_image.safetensors")) == ["visual.proj"]
    text = (out / "emoji.yaml").read_text()
    assert text.startswith("# python scripts/txt2img.py") and text.endswith("model:\n  target: a.b\n")


def test_an_unfinished_run_ships_nothing(ship, tmp_path):
    code, err = ship("--diffusion", tmp_path, "--clip", tmp_path, "--out", tmp_path / "demo")
    assert code == 2 and "model.safetensors is not there" in err and err.count("\n") == 1
    assert not (tmp_path / "demo").exists()


def test_a_task_ships_what_differs_from_the_base(ship, tmp_path):
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

    assert ship("--task", "inpaint", "--diffusion", run, "--out", out) == (0, "")
    with safe_open(out / "emoji_inpaint.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["model.b", "model.new"]
        about = file.metadata()
    assert about["sd.base"] == "emoji.safetensors" and about["steps"] == "7"
    assert about["sd.task"] == "inpaint" and about["sd.prediction"] == "v"
    text = (out / "emoji_inpaint.yaml").read_text()
    assert text == f"# what it is\n# and how it is used\n\n{exported}"

    laid_out = "# what it is\n\nmodel: {target: a.b, params: {parameterization: v}}   # by hand\n"
    (out / "emoji_inpaint.yaml").write_text(laid_out)
    assert ship("--task", "inpaint", "--diffusion", run, "--out", out) == (0, "")
    assert (out / "emoji_inpaint.yaml").read_text() == laid_out
