"""--preview-every, --save-latents, --latents, Ctrl-C and --hires as a user meets them."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from script_files import REPOSITORY, load_script

from golden_cases import cases
from ldm.cli import stopping
from ldm.imaging import metadata

FILES = cases("e2e_txt2img")[0].files
MODEL = "--config", FILES["config"], "--ckpt", FILES["checkpoint"], "--precision", "full"
RUN = *MODEL, "--prompt", "a", "--H", 16, "--W", 16, "--n_samples", 2, "--n_iter", 2, "--no-grid"


@pytest.fixture
def stop_at(monkeypatch):
    """Send this process a signal when step `step` of the whole run is watched."""
    from ldm.cli import watching

    def arrange(step: int, number: int = signal.SIGINT, times: int = 1) -> None:
        seen = 0
        original = watching.step_bar

        def bar(what, quiet):
            def track(steps, total):
                nonlocal seen
                for each in original(what, quiet)(steps, total):
                    seen += 1
                    for _ in range(times if seen == step else 0):
                        os.kill(os.getpid(), number)
                        time.sleep(0.01)
                    yield each

            return track

        monkeypatch.setattr(watching, "step_bar", bar)

    return arrange


def pictures(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").glob("*.png"))}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("number", "step", "kept"),
    [(signal.SIGINT, 2, 0), (signal.SIGINT, 4, 2), (signal.SIGTERM, 7, 2), (signal.SIGUSR1, 1, 0)],
)
def test_a_signal_saves_where_the_run_stands_and_it_goes_on_exactly(
    run, tmp_path, stop_at, number, step, kept
):
    """In the first batch; after its last step, whose pictures are made; in the second batch."""
    flags = *RUN, "--sampler", "euler_a", "--steps", 4
    assert run("txt2img.py", *flags, "--outdir", "whole").code == 0
    stop_at(step, number)
    outcome = run("txt2img.py", *flags, "--outdir", "o")
    assert outcome.code == 75, outcome.err
    assert len(pictures(tmp_path / "o")) == kept if kept else not (tmp_path / "o" / "samples").exists()
    assert f"stopped before step {step % 4 + 1}" in outcome.err and "to go on exactly: " in outcome.err
    assert "--latents o/interrupted-00000.safetensors" in outcome.err and "error" not in outcome.err
    outcome = run("txt2img.py", "--latents", "o/interrupted-00000.safetensors")
    assert outcome.code == 0, outcome.err
    assert pictures(tmp_path / "o") == pictures(tmp_path / "whole"), "to the last byte, metadata too"


def test_a_second_signal_stops_at_once(run, tmp_path, stop_at):
    stop_at(2, times=2)
    outcome = run("txt2img.py", *RUN, "--steps", 4, "--outdir", "o")
    assert outcome.code == 130 and outcome.err.endswith("interrupted\n")
    assert not (tmp_path / "o").exists() and not stopping.stop_asked()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
    for _ in range(3000):
        if (tmp_path / "o" / "preview.png").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert (tmp_path / "o" / "interrupted-00000.safetensors").is_file()
    assert "Traceback" not in err and err.strip().splitlines()[-1].startswith("stopped before step ")


@pytest.mark.few(1)
@pytest.mark.parametrize(("script", "step"), [("img2img.py", 6), ("txt2img.py", 6), ("txt2img.py", 9)])
def test_a_stopped_run_of_img2img_with_given_noise_and_of_hires(run, tmp_path, stop_at, script, step):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / "i.png")
    save_file({"noise": torch.randn(2, 4, 2, 2)}, tmp_path / "noise.safetensors")
    img2img = *MODEL, "--init-img", "i.png", "--prompt", "a", "--n_iter", 2, "--ddim_steps", 5, "--no-grid"
    txt2img = *RUN, "--steps", 4, "--latents", "noise.safetensors", "--hires", 1.5, "--hires-strength", 0.8
    flags = img2img if script == "img2img.py" else txt2img
    assert run(script, *flags, "--outdir", "whole").code == 0
    stop_at(step)
    assert run(script, *flags, "--outdir", "o").code == 75
    stop_at(-1)
    outcome = run(script, "--latents", "o/interrupted-00000.safetensors")
    assert outcome.code == 0, outcome.err
    assert pictures(tmp_path / "o") == pictures(tmp_path / "whole")


def test_a_stopped_run_goes_on_from_another_folder(run, tmp_path, stop_at, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)).save(tmp_path / "i.png")
    flags = *MODEL, "--init-img=i.png", "--prompt", "i.png", "--ddim_steps", 4, "--no-grid", "--outdir", "o"
    stop_at(2)
    assert run("img2img.py", *flags).code == 75
    stop_at(-1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = run("img2img.py", "--latents", "../o/interrupted-00000.safetensors", "--outdir", "o")
    assert outcome.code == 0, outcome.err
    record = metadata.read_record(tmp_path / "elsewhere" / "o" / "samples" / "00000.png")
    assert record["prompt"] == "i.png" and record["init_image"]["file"] == "i.png"


def test_flags_beside_a_stopped_run(run, tmp_path, stop_at):
    stop_at(2)
    assert run("txt2img.py", *RUN, "--steps", 4, "--outdir", "o").code == 75
    stop_at(-1)
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
    assert outcome.code == 0 and len(pictures(tmp_path / "elsewhere")) == 4, outcome.err


def test_latents_are_kept_beside_each_picture_and_decode_to_it(run, tmp_path):
    flags = *RUN, "--steps", 2, "--outdir", "o", "--W", 24
    assert run("txt2img.py", *flags, "--save-latents").code == 0
    names = {path.name for path in (tmp_path / "o" / "samples").iterdir()}
    assert names == {f"{i:05d}.{kind}" for i in range(4) for kind in ("png", "latents.safetensors")}
    file = "o/samples/00003.latents.safetensors"
    assert load_file(tmp_path / file)["latents"].shape == (1, 4, 2, 4), "of the padded size"
    outcome = run("txt2img.py", "--latents", file, "--outdir", "again")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "again/samples/00000.png").read_bytes() == pictures(tmp_path / "o")["00003.png"]
    assert run("txt2img.py", *flags).code == 0
    assert len(pictures(tmp_path / "o")) == 8 and "00007.png" in pictures(tmp_path / "o"), (
        "no gap in the numbers"
    )
    assert pictures(tmp_path / "o")["00004.png"] == pictures(tmp_path / "o")["00000.png"], (
        "nor in the pictures"
    )
    begun = run("img2img.py", *MODEL, "--latents", file, "--prompt", "b", "--ddim_steps", 4, "--outdir", "p")
    assert begun.code == 0, begun.err
    with Image.open(tmp_path / "p/samples/00000.png") as picture:
        assert picture.size == (24, 16)
    flags = "--latents", file, "--prompt", "b", "--ddim_steps", 4, "--outdir", "p", "--save-latents"
    assert run("img2img.py", *MODEL, *flags).code == 0
    beside = "p/samples/00002.latents.safetensors"
    assert run("txt2img.py", "--latents", beside, "--outdir", "q").code == 0
    assert (tmp_path / "q/samples/00000.png").read_bytes() == pictures(tmp_path / "p")["00002.png"]
    record = metadata.read_record(tmp_path / "p/samples/00000.png")
    assert record["latents"]["file"] == "00003.latents.safetensors" and len(record["latents"]["sha256"]) == 64


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
    from ldm.cli.watching import Preview

    shown, original = [], Preview.show
    monkeypatch.setattr(Preview, "show", lambda self, step: (shown.append(step.i), original(self, step)))
    flags = *RUN, "--steps", 5, "--sampler", "ddim", "--outdir"
    outcome = run("txt2img.py", *flags, "o", "--preview-every", 2)
    assert (
        outcome.code == 0 and "5 network evaluations" in outcome.out and "shapes in grey" not in outcome.err
    )
    assert shown == [1, 3, 1, 3]
    with Image.open(tmp_path / "o" / "preview.png") as picture:
        assert picture.size == (2 + 2 * 4, 2 + 4), "two pictures of two latents a side"
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["preview.png", "samples"]
    assert run("txt2img.py", *flags, "p").code == 0
    assert pictures(tmp_path / "o") == pictures(tmp_path / "p")


def test_a_preview_that_cannot_be_written_does_not_end_the_run(run, tmp_path):
    (tmp_path / "o" / "preview.png").mkdir(parents=True)
    outcome = run("txt2img.py", *RUN, "--steps", 2, "--outdir", "o", "--preview-every", 1)
    assert outcome.code == 0 and outcome.err.count("going on without") == 1
    assert len(pictures(tmp_path / "o")) == 4


def test_hires_is_recorded_and_made_again_from_its_record(run, tmp_path):
    flags = *RUN, "--steps", 4, "--hires", 1.5, "--hires-mode", "latent", "--hires-steps", 6, "--n_iter", 1
    outcome = run("txt2img.py", *flags, "--outdir", "o", "--save-latents")
    assert outcome.code == 0, outcome.err
    path = tmp_path / "o/samples/00001.png"
    record = metadata.read_record(path)
    expected = {"scale": 1.5, "mode": "latent", "strength": 0.65, "num_steps": 6, "first_pass": [16, 16]}
    assert record["hires"] == expected and (record["width"], record["height"]) == (24, 24)
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
    parser = load_script("txt2img.py").make_parser()
    assert parser.parse_args(["--pre", "full", "--outd", "x"]).precision == "full"
    with pytest.raises(SystemExit):
        parser.parse_args(["--h"])
    assert parser.given(["--steps=50", "--pl"]) == {"steps", "plms"}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((512, 512), ""),
        ((512, 704), ""),
        ((768, 512), ""),
        ((1024, 1024), "--H 512 --W 512 --hires 2"),
        ((768, 1536), "--H 384 --W 704 --hires 2"),
        ((256, 256), "--H 512 --W 512"),
        ((320, 704), "--H 512 --W 512"),
    ],
)
def test_a_hint_where_the_size_is_far_from_what_was_trained_on(caplog, size, words):
    from ldm.cli.model import _hint_at_size

    with caplog.at_level("INFO", logger="ldm"):
        _hint_at_size(*size, 512, hires=True)
    assert caplog.text.strip().endswith(words) if words else not caplog.text


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.heeding_signals():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert not stopping.stop_asked()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            assert stopping.stop_asked()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not stopping.stop_asked()
