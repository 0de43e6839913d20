"""scripts/convert.py: what it says, what it leaves behind, and the demonstration model in diffusers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from script_files import REPOSITORY

from ldm.checkpoint.convert import write_file, write_folder
from ldm.checkpoint.layouts.renaming import below, with_prefix
from ldm.config import load_config
from ldm.diffusion.cond import Cond
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import denoiser
from ldm.loading import load_model
from ldm.samplers import make_sampler, sample_loop

CONFIG, WEIGHTS = (REPOSITORY / "configs" / "demo" / f"emoji.{ending}" for ending in ("yaml", "safetensors"))


@pytest.mark.slow
def test_the_demonstration_model_runs_in_diffusers(run, tmp_path: Path):
    import diffusers

    done = run("convert.py", WEIGHTS, tmp_path / "emoji", "--config", CONFIG)
    assert done.code == 0 and "kept 404 tensors (34.4 MB): UNet" in done.out and "prediction v" in done.out
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "emoji", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(CONFIG, WEIGHTS, device="cpu", dtype="float32")
    x_t = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    prompt, steps, scale = "3d emoji of a cat, blue background", 4, 5.0
    told = dict(num_inference_steps=steps, guidance_scale=scale, output_type="latent")
    got = pipeline(prompt, latents=x_t, **told).images
    with torch.no_grad():
        cond, uncond = (Cond(model.get_learned_conditioning([text])) for text in (prompt, ""))
        denoise = denoiser(model.apply_model, model.schedule, model.parameterization)
        sampler = make_sampler("ddim", model.schedule, steps)
        *_, last = sample_loop(sampler, ClassifierFreeGuidance(denoise, uncond, scale), x_t, cond)
    torch.testing.assert_close(got, last.x_t, atol=1e-4, rtol=0)

    done = run("convert.py", tmp_path / "emoji", tmp_path / "back.safetensors", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    back, before = load_file(tmp_path / "back.safetensors"), load_file(WEIGHTS)
    assert back.keys() == before.keys() and all(torch.equal(back[name], x) for name, x in before.items())


def test_a_training_file_is_pruned(run, tmp_path: Path):
    raw = {f"model.diffusion_model.{n}.weight": torch.randn(4, 4) for n in ("a", "b")}
    copies = {"model_ema." + name.removeprefix("model.").replace(".", ""): 2 * x for name, x in raw.items()}
    torch.save({"state_dict": {**raw, **copies}, "optimizer_states": [{}]}, tmp_path / "in.ckpt")
    flags = ("--prune", "--weights", "ema", "--dtype", "float16")
    done = run("convert.py", "in.ckpt", "out.safetensors", *flags)
    assert done.code == 0 and "weights ema" in done.out
    assert "dropped 2 tensors (0.0 MB): raw weights" in done.out
    got = load_file(tmp_path / "out.safetensors")
    assert got.keys() == raw.keys() and all(torch.equal(got[name], (2 * x).half()) for name, x in raw.items())
    again = run("convert.py", "in.ckpt", "out.safetensors")
    assert again.code == 2 and again.err.count("\n") == 1 and "--overwrite" in again.err
    assert run("convert.py", "in.ckpt", "out.safetensors", "--overwrite").code == 0
    assert len(load_file(tmp_path / "out.safetensors")) == 4


@pytest.mark.parametrize("flags", [(), ("--prune",)])
def test_what_belongs_to_no_part_is_pruned_and_identified(flags, run, tmp_path: Path):
    own = {"model.diffusion_model.a.weight": torch.ones(4), "betas": torch.ones(5), "v_pred": torch.ones(0)}
    foreign = {"ddim_sigmas": torch.zeros(1), "embedding_manager.x": torch.zeros(3), "none": torch.zeros(0)}
    torch.save(own | foreign, tmp_path / "in.ckpt")
    assert "3 of its tensors belong to no part of a model (ddim_sigmas, " in run("identify.py", "in.ckpt").out
    done = run("convert.py", "in.ckpt", "out.safetensors", *flags)
    assert done.code == 0
    assert load_file(tmp_path / "out.safetensors").keys() == (own if flags else own | foreign).keys()
    assert ("dropped 3 tensors (0.0 MB): of no part of the model" in done.out) == bool(flags)


def test_a_file_of_one_part_keeps_its_names_when_pruned(run, tmp_path: Path):
    own = {"encoder.down_blocks.0.resnets.0.conv1.weight": torch.ones(4), "quant_conv.weight": torch.ones(2)}
    torch.save(own, tmp_path / "vae.pt")
    assert run("convert.py", "vae.pt", "out.safetensors", "--prune").code == 0
    assert load_file(tmp_path / "out.safetensors").keys() == own.keys()


# Forks a child for each case, which kills itself before the n-th tensor is written.
KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, {root!r})
from ldm.checkpoint import convert, load_checkpoint, writer
tensors = {{n: x for n, x in load_checkpoint({weights!r}).items() if n.startswith("first_stage_model.")}}
model = {params!r}
write, left = writer._write_tensor, []
def write_or_stop(file, entry):
    if not left.pop():
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(file, entry)
writer._write_tensor = write_or_stop
for target in {targets!r}:
    for count in (0, 100):
        pid = os.fork()
        if not pid:
            left[:] = [False] + [True] * count
            write_to = pathlib.Path(target)
            if write_to.suffix:
                convert.write_file(write_to, tensors, {{}}, overwrite=True)
            else:
                convert.write_folder(write_to, tensors, model, {{}}, overwrite=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.slow
def test_a_killed_conversion_leaves_what_was_there(tmp_path: Path):
    """An old file and an old folder stay; where there was nothing, nothing appears."""
    tensors = below("first_stage_model.", load_file(WEIGHTS))
    params = OmegaConf.to_container(load_config(CONFIG).model.params)
    old_file, old_folder = tmp_path / "old.safetensors", tmp_path / "old"
    write_file(old_file, tensors, {})
    write_folder(old_folder, with_prefix("first_stage_model.", tensors), params, {})
    before = contents(tmp_path)
    targets = [str(tmp_path / name) for name in ("old.safetensors", "old", "new.safetensors", "new")]
    code = KILLED.format(root=str(REPOSITORY), weights=str(WEIGHTS), params=params, targets=targets)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * 8, done.stderr
    after = {name: data for name, data in contents(tmp_path).items() if not name.startswith(".ldm-")}
    assert after == before and "old/diffusion_pytorch_model.safetensors" in before
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".ldm-")]
    assert len(left) == 1, "each run removes what the one before left"


def contents(path: Path) -> dict[str, bytes]:
    files = [path, *path.rglob("*")]
    return {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}


# Converts or merges in a process of its own, which says so and waits in the middle of the file.
SLOW = """
import sys, time
from ldm.checkpoint import writer
write = writer._write_tensor

def slowly(file, entry):
    write(file, entry)
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
    raise SystemExit("no signal came")

writer._write_tensor = slowly
from ldm.cli import convert, merge
sys.exit({"convert": convert, "merge": merge}[sys.argv[1]].main("", sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    "command", [("convert", "a.safetensors", "result.safetensors"), ("convert", "a.safetensors", "result"),
                ("merge", "a.safetensors", "b.safetensors", "--alpha", "0.5", "--out", "result.safetensors")],
)  # fmt: skip
def test_a_signal_leaves_nothing_half_written(command, number, tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").symlink_to(WEIGHTS)
        (tmp_path / f"{name}.yaml").symlink_to(CONFIG)
    before = sorted(tmp_path.iterdir())
    if command[-1] == "result":
        command = (*command, "--config", str(CONFIG))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *command, "--quiet"], cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == len(before) + 1
        process.send_signal(number)
        error = process.stderr.read()
    assert process.returncode == (130 if number == signal.SIGINT else 75) and error.count("\n") == 1, error
    assert sorted(tmp_path.iterdir()) == before
