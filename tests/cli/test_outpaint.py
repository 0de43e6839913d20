"""scripts/outpaint.py as a user meets it."""

import numpy as np
import pytest
from PIL import Image

from golden_cases import cases
from ldm.imaging import metadata

FILES = cases("e2e_txt2img")[0].files
MODEL = "--config", FILES["config"], "--ckpt", FILES["checkpoint"], "--precision", "full"
RUN = *MODEL, "--prompt", "a", "--steps", 2, "--init-img", "i.png", "--window", 32


@pytest.fixture(autouse=True)
def image(tmp_path):
    """An image with alpha, i.png; returns its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (31, 29, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    return pixels


def saved(folder, number: int = 0) -> np.ndarray:
    with Image.open(folder / "samples" / f"{number:05d}.png") as image:
        return np.asarray(image)


def test_it_grows_and_keeps_every_byte(run, tmp_path, image):
    outcome = run("outpaint.py", *RUN, "--left", 5, "--right", 20, "--up", 1, "--n_samples", 2)
    assert outcome.code == 0, outcome.err
    assert "outpainting 29x31 to 54x32 in 5 windows of at most 32x32" in outcome.out
    folder = tmp_path / "outputs" / "outpaint-samples"
    for number in (0, 1):
        result = saved(folder, number)
        assert result.shape == (32, 54, 4) and np.array_equal(result[1:, 5:34], image)
    assert not np.array_equal(saved(folder, 0), saved(folder, 1))
    record = metadata.read_record(folder / "samples" / "00000.png")
    assert record["task"] == "outpaint" and record["inputs"]["init_img"]["file"] == "i.png"
    expected = {"left": 5, "right": 20, "up": 1, "down": 0, "window": 32, "strength": 1.0}
    assert expected.items() <= record["resolved"].items() and record["width"] == 54


def test_a_large_image_carries_the_watermark_in_the_new_part_alone(run, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (250, 260, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    outcome = run("outpaint.py", *RUN, "--right", 40, "--window", 300, "--steps", 1)
    assert outcome.code == 0, outcome.err
    assert np.array_equal(saved(tmp_path / "outputs/outpaint-samples")[:, :260], pixels)


@pytest.mark.slow
def test_a_run_stopped_in_a_window_goes_on(run, tmp_path, stop_at):
    flags = *RUN, "--right", 48, "--n_samples", 2, "--n_iter", 2, "--sampler", "euler_a", "--no-grid"
    assert run("outpaint.py", *flags, "--outdir", "whole").code == 0
    stop_at(4)  # of 2 steps a window
    outcome = run("outpaint.py", *flags, "--outdir", "o")
    assert outcome.code == 75 and not (tmp_path / "o" / "samples").exists(), outcome.err
    stop_at(None)
    outcome = run("outpaint.py", "--latents", "o/interrupted-00000.safetensors")
    assert outcome.code == 0, outcome.err
    for number in range(4):
        name = f"samples/{number:05d}.png"
        assert (tmp_path / "o" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_image_is_no_going_on(run, tmp_path, stop_at):
    stop_at(1)
    assert run("outpaint.py", *RUN, "--right", 8, "--outdir", "o").code == 75
    Image.new("RGB", (29, 31)).save(tmp_path / "i.png")
    outcome = run("outpaint.py", "--latents", "o/interrupted-00000.safetensors")
    assert outcome.code == 2 and "has changed since" in outcome.err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "nothing to add: give --left, --right, --up or --down PIXELS"),
        (("--left", -5), "got '-5', expected a whole number from 0"),
        (("--left", 16_385), "expected a whole number from 0 to 16384"),
        (("--left", 16_384), "29x31 to 16413x31: at most 16384 pixels per side and 64 megapixels"),
        (("--left", 9000, "--up", 9000), "megapixels are possible; add fewer pixels"),
        (("--right", 8, "--window", 15), "expected a whole number from 16"),
        (("--right", 8, "--init-img"), "--init-img: expected one argument"),
        (("--right", 8, "--init-img", ""), "--init-img is missing: give the image to extend"),
        (("--right", 8, "--init-img", "nowhere.png"), "nowhere.png"),
        (("--right", 8, "--strength", 2), "expected a number from 0 to 1"),
        (("--right", 8, "--save-latents"), "has no --save-latents"),
    ],
)
def test_wrong_input_is_one_line(run, tmp_path, flags, says):
    outcome = run("outpaint.py", *RUN, *flags)
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["i.png"]
