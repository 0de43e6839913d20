"""The flags of guidance as commands: what images remember, and what is said where a flag does nothing."""

import pytest
from PIL import Image

from golden_cases import cases
from ldm.imaging import metadata

FILES = cases("e2e_txt2img")[0].files
QUICK = ("--config", FILES["config"], "--ckpt", FILES["checkpoint"], "--n_iter", 1, "--n_samples", 1)
QUICK += ("--precision", "full", "--no-grid", "--outdir", "o")
ALL = ("--guidance-rescale", 0.7, "--guidance-interval", "0.2,0.8", "--dynamic-threshold", 0.995)
RECORDED = {"guidance_rescale": 0.7, "guidance_interval": [0.2, 0.8], "dynamic_threshold": 0.995}


def remembered(tmp_path) -> tuple[dict, str]:
    path = tmp_path / "o" / "samples" / "00000.png"
    with Image.open(path) as image:
        return metadata.read_record(path), image.text["parameters"]


@pytest.mark.parametrize("script", ["txt2img.py", "img2img.py"])
def test_images_remember_the_guidance_that_is_on(run, tmp_path, script):
    Image.new("RGB", (16, 32), (200, 30, 30)).save(tmp_path / "init.png")
    flags = ("--steps", 4, "--H", 32, "--W", 16)
    if script == "img2img.py":
        flags = ("--ddim_steps", 4, "--init-img", "init.png")
    outcome = run(script, *QUICK, *flags, *ALL)
    assert outcome.code == 0, outcome.err
    steps, all_steps = (3, 4) if script == "txt2img.py" else (2, 3)
    assert f"guidance in {steps} of {all_steps} steps" in outcome.out
    record, parameters = remembered(tmp_path)
    assert RECORDED.items() <= record["request"].items()
    assert RECORDED.items() <= record["resolved"].items()
    shown = "CFG scale: 9.0, CFG rescale: 0.7, Guidance interval: 0.2 to 0.8, Dynamic threshold: 0.995,"
    assert shown in parameters


def test_what_is_off_is_not_recorded(run, tmp_path):
    assert run("txt2img.py", *QUICK, "--steps", 1, "--H", 32, "--W", 16).code == 0
    record, parameters = remembered(tmp_path)
    assert not set(RECORDED) & set(record["request"])
    assert "rescale" not in parameters and "interval" not in parameters


def test_without_guidance_the_flags_that_change_it_say_so(run):
    flags = ("--steps", 1, "--H", 32, "--W", 16, "--scale", 1, "--negative-prompt", "blurry")
    outcome = run("txt2img.py", *QUICK, *flags, *ALL)
    assert outcome.code == 0, outcome.err
    warnings = [line for line in outcome.err.splitlines() if "no effect at --scale 1" in line]
    assert [line.split()[1] for line in warnings] == [
        "--negative-prompt",
        "--guidance-rescale",
        "--guidance-interval",
    ]


def test_an_impossible_interval_is_one_line_and_nothing_is_written(run, tmp_path):
    outcome = run("txt2img.py", *QUICK, "--guidance-interval", "0.28,5.42")
    assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
    assert "expected LOW,HIGH with 0 <= LOW < HIGH <= 1" in outcome.err
    assert not (tmp_path / "o").exists()
