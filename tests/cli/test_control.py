"""--preview-every, --save-latents, --latents, Ctrl-C and --hires as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from script_files import REPOSITORY

from golden_cases import cases
from ldm import signals
from ldm.cli.flags import parser_of
from ldm.imaging import metadata
from ldm.jobs.opening import hint_at_size
from ldm.requests import Txt2Img
from ldm.requests.resolving import ModelFacts

FILES = cases("e2e_txt2img")[0].files
MODEL = "--config", FILES["config"], "--ckpt", FILES["checkpoint"], "--precision", "full"
RUN = *MODEL, "--prompt", "a", "--H", 16, "--W", 16, "--n_samples", 2, "--n_iter", 2, "--no-grid"


def images(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").glob("*.png"))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "step", "kept"),
    [(signal.SIGINT, 2, 0), (signal.SIGINT, 4, 2), (signal.SIGTERM, 7, 2), (signal.SIGUSR1, 1, 0),
     (signal.SIGHUP, 3, 0)],
)
def test_a_signal_saves_where_the_run_stands_and_it_goes_on_exactly(
    run, tmp_path, stop_at, number, step, kept
):
    """In the first batch; after its last step, whose images are made; in the second batch."""
    flags = *RUN, "--sampler", "euler_a", "--steps", 4
    assert run("txt2img.py", *flags, "--outdir", "whole").code == 0
    stop_at(step, number)
    outcome = run("txt2img.py", *flags, "--outdir", "o")
    assert outcome.code == 75, outcome.err
    assert len(images(tmp_path / "o")) == kept if kept else not (tmp_path / "o" / "samples").exists()
    assert f"stopped before step {step % 4 + 1}" in outcome.err and "to resume: " in outcome.err
    assert "--latents o/interrupted-00000.safetensors" in outcome.err and "error" not in outcome.err
    outcome = run("txt2img.py", "--latents", "o/interrupted-00000.safetensors")
    assert outcome.code == 0, outcome.err
    assert images(tmp_path / "o") == images(tmp_path / "whole"), "to the last byte, metadata too"


def test_a_second_signal_stops_at_once(run, tmp_path, stop_at):
    stop_at(2, times=2)
    outcome = run("txt2img.py", *RUN, "--steps", 4, "--outdir", "o")
    assert outcome.code == 130 and outcome.err.endswith("interrupted\n")
    assert "Ctrl-C: finishing step 2 of 4, then saving the state; a second one ends the run" in outcome.err
    assert not (tmp_path / "o").exists() and not signals.stop_asked()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 75), ("SIGHUP", 75), ("SIGUSR2", 75), ("SIGINT", 130)]
)
def test_a_signal_while_the_model_is_opened_ends_the_run_at_once(run, tmp_path, monkeypatch, name, code):
    before = signal.getsignal(getattr(signal, name))

    def opening(*_, **__):
        try:
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM) if code == 75 else None  # cleaning up is not interrupted
            (tmp_path / "cleaned").touch()

    monkeypatch.setattr("ldm.jobs.opening.Models.open", opening)
    outcome = run("txt2img.py", *RUN, "--outdir", "o")
    assert outcome.code == code and len(outcome.err.splitlines()) == 1
    assert ("interrupted" if code == 130 else f"stopped by {name}") in outcome.err
    assert (tmp_path / "cleaned").exists() and not (tmp_path / "o").exists()
    assert signal.getsignal(getattr(signal, name)) == before


def test_what_is_finished_is_said_before_the_first_step_and_after_the_last(run, tmp_path, monkeypatch):
    """While memory is planned, and while images are decoded."""
    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.tasks import run as runs

    plan, decode = runs.tiling_for, LatentDiffusion.decode_first_stage

    def then(function):
        def killed(*args, **options):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            return function(*args, **options)

        return killed

    monkeypatch.setattr(runs, "tiling_for", then(plan))
    outcome = run("txt2img.py", *RUN, "--steps", 2, "--outdir", "o")
    assert outcome.code == 75
    assert "SIGHUP: finishing the preparations, then saving the state; Ctrl-C ends" in outcome.err
    monkeypatch.setattr(runs, "tiling_for", plan)
    monkeypatch.setattr(LatentDiffusion, "decode_first_stage", then(decode))
    outcome = run("txt2img.py", *RUN, "--steps", 2, "--outdir", "p")
    assert outcome.code == 75 and "SIGHUP: finishing the images of this batch" in outcome.err
    assert len(images(tmp_path / "p")) == 2


@pytest.mark.slow
def test_a_real_ctrl_c_in_a_process_of_its_own(tmp_path):
    """While the process computes, not between its steps."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "txt2img.py")]
    command += [
        str(flag) for flag in (*RUN, "--steps", 1000, "--rng", "per-image", "--sampler", "dpmpp_2m_sde")
    ]
    command += ["--preview-every", "1", "--outdir", "o"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    for _ in range(2400):  # a slow machine takes a minute to start
        if (tmp_path / "o" / "preview.png").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert (tmp_path / "o" / "interrupted-00000.safetensors").is_file()
    assert "Traceback" not in err and err.strip().splitlines()[-1].startswith("stopped before step ")


@pytest.mark.few(1)
@pytest.mark.parametrize("script, step", [("img2img.py", 6), ("txt2img.py", 6), ("txt2img.py", 9)])
def test_a_stopped_run_of_img2img_with_given_noise_and_of_hires(run, tmp_path, stop_at, script, step):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / "i.png")
    save_file({"noise": torch.randn(2, 4, 2, 2)}, tmp_path / "noise.safetensors")
    flags = *MODEL, "--init-img", "i.png", "--prompt", "a", "--n_iter", 2, "--ddim_steps", 5, "--no-grid"
    if script == "txt2img.py":
        flags = *RUN, "--steps", 4, "--latents", "noise.safetensors", "--hires", 1.5, "--hires-strength", 0.8
    assert run(script, *flags, "--outdir", "whole").code == 0
    stop_at(step)
    assert run(script, *flags, "--outdir", "o").code == 75
    stop_at(None)
    outcome = run(script, "--latents", "o/interrupted-00000.safetensors")
    assert outcome.code == 0, outcome.err
    assert images(tmp_path / "o") == images(tmp_path / "whole")


def test_a_stopped_run_goes_on_from_another_folder(run, tmp_path, stop_at, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / "i.png")
    flags = *MODEL, "--init-img=i.png", "--prompt", "i.png", "--ddim_steps", 4, "--no-grid", "--outdir", "o"
    stop_at(2)
    assert run("img2img.py", *flags).code == 75
    stop_at(None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = run("img2img.py", "--latents", "../o/interrupted-00000.safetensors", "--outdir", "o")
    assert outcome.code == 0, outcome.err
    record = metadata.read_record(tmp_path / "elsewhere" / "o" / "samples" / "00000.png")
    assert record["prompt"] == "i.png" and record["inputs"]["init_img"]["file"] == "i.png"


@pytest.mark.slow
def test_flags_beside_a_stopped_run(run, tmp_path, stop_at):
    stop_at(2)
    assert run("txt2img.py", *RUN, "--steps", 4, "--outdir", "o").code == 75
    stop_at(None)
    file = "--latents", "o/interrupted-00000.safetensors"
    outcome = run("txt2img.py", *file, "--steps", 5)
    assert outcome.code == 2
    assert (
        "--steps 5 contradicts o/interrupted-00000.safetensors" in outcome.err and "--steps 4" in outcome.err
    )
    outcome = run("img2img.py", *file)
    assert outcome.code == 2 and "scripts/txt2img.py" in outcome.err
    outcome = run("txt2img.py", *file, "--ckpt", cases("e2e_txt2img")[-1].files["checkpoint"], "--steps", 4)
    same = cases("e2e_txt2img")[-1].files["checkpoint"] == FILES["checkpoint"]
    assert outcome.code == (0 if same else 2), outcome.err
    outcome = run("txt2img.py", *file, "--outdir", "elsewhere", "--steps", 4, "--quiet")
    assert outcome.code == 0 and len(images(tmp_path / "elsewhere")) == 4, outcome.err


def test_latents_are_kept_beside_each_image_and_decode_to_it(run, tmp_path):
    flags = *RUN, "--steps", 2, "--outdir", "o", "--W", 24
    assert run("txt2img.py", *flags, "--save-latents").code == 0
    names = {path.name for path in (tmp_path / "o" / "samples").iterdir()}
    assert names == {f"{i:05d}.{kind}" for i in range(4) for kind in ("png", "latents.safetensors")}
    file = "o/samples/00003.latents.safetensors"
    assert load_file(tmp_path / file)["latents"].shape == (1, 4, 2, 4), "of the padded size"
    outcome = run("txt2img.py", "--latents", file, "--outdir", "again")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "again/samples/00000.png").read_bytes() == images(tmp_path / "o")["00003.png"]
    assert run("txt2img.py", *flags).code == 0
    assert len(images(tmp_path / "o")) == 8 and "00007.png" in images(tmp_path / "o"), (
        "no gap in the numbers"
    )
    assert images(tmp_path / "o")["00004.png"] == images(tmp_path / "o")["00000.png"], (
        "nor in the images"
    )
    begun = run("img2img.py", *MODEL, "--latents", file, "--prompt", "b", "--ddim_steps", 4, "--outdir", "p")
    assert begun.code == 0, begun.err
    with Image.open(tmp_path / "p/samples/00000.png") as image:
        assert image.size == (24, 16)
    flags = "--latents", file, "--prompt", "b", "--ddim_steps", 4, "--outdir", "p", "--save-latents"
    assert run("img2img.py", *MODEL, *flags).code == 0
    beside = "p/samples/00002.latents.safetensors"
    assert run("txt2img.py", "--latents", beside, "--outdir", "q").code == 0
    assert (tmp_path / "q/samples/00000.png").read_bytes() == images(tmp_path / "p")["00002.png"]
    record = metadata.read_record(tmp_path / "p/samples/00000.png")
    latents = record["inputs"]["latents"]
    assert latents["file"] == "00003.latents.safetensors" and len(latents["sha256"]) == 64


def test_wrong_latents_are_one_line(run, tmp_path):
    save_file({"latents": torch.zeros(1, 4, 4, 4)}, tmp_path / "n.safetensors")
    outcome = run("txt2img.py", *RUN, "--steps", 2, "--latents", "n.safetensors", "--outdir", "o")
    assert outcome.code == 2 and "latents are 1x4x4x4: expected 2x4x2x2" in outcome.err
    outcome = run("txt2img.py", *RUN, "--latents", "none.safetensors")
    assert outcome.code == 2 and "none.safetensors" in outcome.err and outcome.err.count("\n") == 1
    (tmp_path / "i.png").write_bytes(b"")
    outcome = run("img2img.py", *MODEL, "--latents", "n.safetensors", "--init-img", "i.png")
    assert outcome.code == 2 and "--init-img and --latents" in outcome.err
    assert not (tmp_path / "o").exists()


def test_previews_follow_the_run_and_cost_no_evaluation(run, tmp_path, monkeypatch):
    from ldm.jobs.preview import Preview

    shown, original = [], Preview.show
    monkeypatch.setattr(Preview, "show", lambda self, step: (shown.append(step.i), original(self, step)))
    flags = *RUN, "--steps", 5, "--sampler", "ddim", "--outdir"
    outcome = run("txt2img.py", *flags, "o", "--preview-every", 2)
    assert (
        outcome.code == 0 and "5 UNet evaluations" in outcome.out and "shapes in grey" not in outcome.err
    )
    assert shown == [1, 3, 1, 3]
    with Image.open(tmp_path / "o" / "preview.png") as image:
        assert image.size == (2 + 2 * 4, 2 + 4), "two images of two latents a side"
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["preview.png", "samples"]
    assert run("txt2img.py", *flags, "p").code == 0
    assert images(tmp_path / "o") == images(tmp_path / "p")


def test_a_preview_that_cannot_be_written_does_not_end_the_run(run, tmp_path):
    (tmp_path / "o" / "preview.png").mkdir(parents=True)
    outcome = run("txt2img.py", *RUN, "--steps", 2, "--outdir", "o", "--preview-every", 1)
    assert outcome.code == 0 and outcome.err.count("continuing without") == 1
    assert len(images(tmp_path / "o")) == 4


def test_hires_is_recorded_and_made_again_from_its_record(run, tmp_path):
    flags = *RUN, "--steps", 4, "--hires", 1.5, "--hires-mode", "latent", "--hires-steps", 6, "--n_iter", 1
    outcome = run("txt2img.py", *flags, "--outdir", "o", "--save-latents")
    assert outcome.code == 0, outcome.err
    path = tmp_path / "o/samples/00001.png"
    record = metadata.read_record(path)
    asked = {"hires": 1.5, "hires_mode": "latent", "hires_steps": 6, "height": 16, "width": 16}
    assert asked.items() <= record["request"].items()
    assert record["resolved"].items() >= (asked | {"hires_strength": 0.65}).items()
    assert (record["width"], record["height"]) == (24, 24)
    with Image.open(path) as image:
        assert "Denoising strength: 0.65, Hires upscale: 1.5, Hires steps: 6" in image.text["parameters"]
    again = run("txt2img.py", "--latents", "o/samples/00001.latents.safetensors", "--outdir", "p")
    assert again.code == 0 and (tmp_path / "p/samples/00000.png").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "flags", [("--hires", "1"), ("--hires", "5"), ("--hires", "x"), ("--preview-every", "0")]
)
def test_wrong_numbers_are_refused(run, flags):
    outcome = run("txt2img.py", *RUN, *flags)
    assert outcome.code == 2 and flags[0] in outcome.err


def test_abbreviations_that_always_worked_keep_their_meaning():
    parser = parser_of(Txt2Img, "")
    assert parser.parse_args(["--pre", "full", "--outd", "x"]).precision == "full"
    with pytest.raises(SystemExit):
        parser.parse_args(["--h"])
    assert vars(parser.parse_args(["--steps=50", "--pl"])) == {"steps": 50, "plms": True}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((512, 512), ""),
        ((512, 704), ""),
        ((768, 512), ""),
        ((1024, 1024), "--H 512 --W 512 --hires 2"),
        ((768, 1536), "--H 384 --W 768 --hires 2"),
        ((256, 256), "--H 512 --W 512"),
        ((320, 704), "--H 512 --W 512"),
    ],
)
def test_a_hint_where_the_size_is_far_from_what_was_trained_on(caplog, size, words):
    facts = ModelFacts(native_size=512, training_size=512, latent_channels=4, latent_factor=8)
    opened = SimpleNamespace(facts=facts, knows_size=True, model=SimpleNamespace(size_multiple=64))
    with caplog.at_level("INFO", logger="ldm"):
        hint_at_size(Txt2Img(height=size[0], width=size[1]), opened)
    assert caplog.text.strip().endswith(words) if words else not caplog.text


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.heeding_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert not signals.stop_asked()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert signals.stop_asked()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not signals.stop_asked()


def test_an_interrupted_run_is_no_noise_and_another_format_is_refused(run, tmp_path, stop_at):
    from safetensors import safe_open

    from ldm.errors import InputError
    from ldm.jobs.inputs import load_inputs
    from ldm.requests import Txt2Img

    stop_at(2)
    assert run("txt2img.py", *RUN, "--steps", 4, "--outdir", "o").code == 75
    stop_at(-1)
    file = "o/interrupted-00000.safetensors"
    with pytest.raises(InputError, match="is an interrupted run, not noise: resume it"):
        load_inputs(Txt2Img(latents=file))
    with safe_open(tmp_path / file, "pt") as opened:
        record = json.loads(opened.metadata()["ldm"])
    foreign = ({"format": 1}, "in format 1; expected 2"), ({"command": {"stepz": 4}}, "no option 'stepz'")
    for changes, says in foreign:
        about = {"ldm": json.dumps(record | changes)}
        save_file(load_file(tmp_path / file), tmp_path / "old.safetensors", about)
        outcome = run("txt2img.py", "--latents", "old.safetensors")
        assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1, outcome.err
