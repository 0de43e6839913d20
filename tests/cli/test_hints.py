"""What those who are new to this are told where their first guess was wrong."""

import errno
import os
import shutil
import tempfile
from dataclasses import replace

import pytest
from PIL import Image
from script_files import REPOSITORY

from ldm.checkpoint.identity import Identity
from ldm.config import find_config
from ldm.jobs.choosing import own_yaml

DEMO = REPOSITORY / "configs" / "demo"


def error_of(outcome) -> str:
    assert outcome.code == 2 and outcome.err.startswith("error: "), outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    return outcome.err


@pytest.mark.parametrize("seed", ["-1", "random", 2**32])
def test_there_is_no_random_seed(run, seed):
    error = error_of(run("txt2img.py", "--seed", seed))
    assert f"got '{seed}', expected a whole number from 0 to 4294967295" in error
    too_large = "on a CPU, torch draws the same numbers for 0"
    assert (too_large if seed == 2**32 else "no value means random: choose any seed, such as 7") in error


def test_empty_lines_are_prompts_and_said_to_be(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox\n\na cat\n")
    flags = "--from-file", "prompts.txt", "--steps", 1, "--H", 32, "--W", 32, "--n_iter", 1, "--no-grid"
    outcome = run("txt2img.py", *flags)
    assert outcome.code == 0, outcome.err
    assert "--from-file prompts.txt: line 2 is empty and used as an empty prompt" in outcome.out
    assert len(list((tmp_path / "outputs").rglob("*.png"))) == 3
    (tmp_path / "prompts.txt").write_text("a fox\n\n \n")
    outcome = run("txt2img.py", *flags)
    assert "2 lines are empty" in outcome.out
    (tmp_path / "prompts.txt").write_text("a fox\n")
    assert "empty" not in run("txt2img.py", *flags).out


@pytest.mark.parametrize("name", ["nosuch", "nosuch/checkpoints/last.ckpt"])
def test_a_run_that_is_not_there_cannot_be_resumed(run, tmp_path, name):
    error = error_of(run("train.py", "--resume", name))
    assert f"--resume {name}: nosuch is not a training run; expected a folder such as runs/NAME" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "says"), [("nope", "there is no such file"), (".", "it is a folder")])
def test_latents_that_are_not_there(run, name, says):
    error = error_of(run("txt2img.py", "--latents", name))
    expected = "expected a .safetensors file, of a stopped run or --save-latents"
    assert f"--latents {name}: {says}; {expected}" in error


TINY = ("--n_samples", 1, "--n_iter", 1, "--steps", 1, "--no-grid", "--prompt", "a cat")


def own_files(folder, weights="mine.safetensors", yaml=None):
    """Put the demo model into a folder, and its YAML under a name."""
    (folder / weights).symlink_to(DEMO / "emoji.safetensors")
    if yaml is not None:
        for file in (*DEMO.glob("*.json"), *DEMO.glob("*.txt*")):
            shutil.copy(file, folder)
        text = (DEMO / "emoji.yaml").read_text()
        (folder / yaml).write_text(text.replace("image_size: 16", "image_size: 8"))


def test_a_model_of_its_own_without_a_yaml(run, tmp_path):
    own_files(tmp_path)
    assert error_of(run("convert.py", "mine.safetensors", "folder")).endswith(
        "no included configuration describes it: give --config YAML, by which a folder is written\n"
    )
    error = error_of(run("txt2img.py", *TINY, "--ckpt", "mine.safetensors"))
    assert error.endswith("no included configuration describes; give --config YAML\n")


@pytest.mark.few(1)
@pytest.mark.parametrize("yaml", ["mine.yaml", "model.yaml", "config.yaml"])
def test_the_yaml_next_to_a_model_is_its_own_and_gives_its_size(run, tmp_path, yaml):
    own_files(tmp_path, yaml=yaml)
    outcome = run("txt2img.py", *TINY, "--ckpt", "mine.safetensors")
    assert outcome.code == 0, outcome.err
    assert f"config: {yaml}, which is next to the file" in outcome.out
    assert "training size" not in outcome.out
    (image,) = (tmp_path / "outputs").rglob("*.png")
    with Image.open(image) as opened:
        assert opened.size == (64, 64)
    assert f"config      {yaml}, which is next to it" in run("identify.py", "mine.safetensors").out
    outcome = run("txt2img.py", *TINY, "--ckpt", "mine.safetensors", "--H", 128, "--W", 128)
    assert "128x128 is far from 64x64, the training size of this model" in outcome.out


def test_a_folder_is_written_by_the_yaml_next_to_the_file(run, tmp_path):
    own_files(tmp_path, yaml="mine.yaml")
    outcome = run("convert.py", "mine.safetensors", "folder")
    assert outcome.code == 0 and "the configuration is mine.yaml, which is next to the file" in outcome.out


@pytest.mark.parametrize("text", ["a: 1", "model: {target: nothing.Known}", "- x", "model: 3", "{"])
def test_a_yaml_that_describes_no_model_is_none_of_the_files(run, tmp_path, text):
    own_files(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    error = error_of(run("txt2img.py", *TINY, "--ckpt", "mine.safetensors"))
    assert error.endswith("no included configuration describes; give --config YAML\n")


def test_the_yaml_of_a_run_is_not_that_of_a_published_model_beside_it(tmp_path):
    own_files(tmp_path, yaml="model.yaml")
    published = Identity("model", "1.x", "txt2img", path=str(tmp_path / "mine.safetensors"))
    assert own_yaml(published) is None
    (tmp_path / "mine.yaml").write_bytes((DEMO / "emoji.yaml").read_bytes())
    assert own_yaml(published).name == "mine.yaml"
    assert own_yaml(replace(published, kind="vae")) is None


def test_included_weights_are_found_from_anywhere(run):
    outcome = run("identify.py", "configs/demo/emoji.safetensors", "--hash")
    assert outcome.code == 0 and "a model of context width 256" in outcome.out
    flags = *TINY, "--ckpt", "configs/demo/emoji.safetensors", "--H", 64, "--W", 64
    assert run("txt2img.py", *flags).code == 0
    outcome = run("convert.py", "configs/demo/emoji.safetensors", "out.safetensors")
    assert outcome.code == 0
    assert "there is no such file" in error_of(run("identify.py", "configs/demo/nosuch.safetensors"))


@pytest.mark.parametrize("script", ["identify.py", "txt2img.py"])
def test_a_folder_of_the_hub_s_cache_points_to_its_snapshots(run, tmp_path, script):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    flags = ("--prompt", "a", "--ckpt") if script == "txt2img.py" else ()
    error = error_of(run(script, *flags, "models--a--b"))
    assert "models--a--b: is a folder of the hub's cache; give models--a--b/snapshots/0123abc" in error


@pytest.mark.parametrize(
    ("script", "flags", "says"),
    [
        ("txt2img.py", ("--steps", 1500), "1500 sampling steps: the model was trained with 1 to 1000"),
        ("txt2img.py", ("--steps", 1001, "--sampler", "euler"), "1001 sampling steps: the model was trained"),
        ("txt2img.py", ("--tile", 128, "--overlap", 65), "--overlap 65: expected 0 to 64, half of the tile"),
        ("txt2img.py", ("--tile", 64), "--tile 64: expected 128 or more for this network"),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_its_weights(run, monkeypatch, script, flags, says):
    monkeypatch.setattr("ldm.loading.open_weights", lambda path: pytest.fail("the weights were read"))
    assert says in error_of(run(script, "--prompt", "a cat", *flags))


@pytest.mark.parametrize("outdir", ["o", "there/below"])
@pytest.mark.parametrize("script", ["txt2img.py", "img2img.py"])
def test_a_folder_that_takes_no_files_is_seen_before_the_model_is_loaded(
    run, tmp_path, monkeypatch, script, outdir
):
    """As /proc does: to root it is writable, and no file can be made there."""

    def refuse(dir):
        raise OSError(errno.ENOENT, "No such file or directory", str(dir))

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    error = error_of(run(script, "--outdir", outdir, "--ckpt", "never-looked-at.ckpt"))
    folder = tmp_path / "there" if "there" in outdir else tmp_path
    expected = f"cannot write there, files cannot be created in {folder}; give another folder"
    assert f"--outdir {outdir}: {expected}" in error


def test_looking_at_the_folder_leaves_nothing_in_it(run, tmp_path):
    assert run("img2img.py", "--outdir", ".").code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    ["txt2img.py --config", "txt2img.py --ckpt", "txt2img.py --vae", "img2img.py --init-img", "rerun.py",
     "depth2img.py --depth", "img2img.py --latents", "identify.py", "train.py --config"],
)  # fmt: skip
def test_no_script_waits_for_a_pipe(run, tmp_path, line):
    os.mkfifo(tmp_path / "pipe")
    weights = find_config("configs/demo/emoji.safetensors")
    more = ("--ckpt", weights) if line == "txt2img.py --config" else ()
    outcome = run(*line.split(), tmp_path / "pipe", *more)
    assert outcome.code == 2 and "pipe: it is a pipe, not a file" in outcome.err
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
