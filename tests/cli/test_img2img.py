"""scripts/img2img.py: the image brought to its size, and what is remembered of it."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from golden_cases import cases
from ldm.imaging import metadata

FILES = cases("e2e_txt2img")[0].files
MODEL = ("--config", FILES["config"], "--ckpt", FILES["checkpoint"], "--precision", "full")
RUN = (*MODEL, "--prompt", "a", "--n_samples", 1, "--ddim_steps", 2, "--no-grid")
MULTIPLE = 16  # of the sides that this model takes


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def image(tmp_path):
    """An image of 45 x 70 in the folder of the run."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8))
    image.save(tmp_path / "i.png")
    return image


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("flags", "size", "fit"),
    [
        ((), (45, 70), "exact"),
        (("--fit", "exact"), (45, 70), "exact"),
        (("--fit", "exact", "--H", 45), (45, 70), "exact"),
        (("--fit", "crop"), (32, 64), "crop"),
        (("--fit", "stretch"), (32, 64), "stretch"),
        (("--fit", "pad"), (48, 80), "pad"),
        (("--H", 31, "--W", 17), (31, 17), "crop"),
        (("--H", 31, "--W", 17, "--fit", "pad"), (31, 17), "pad"),
        (("--W", 35), (22, 35), "crop"),
    ],
)
def test_the_size_is_that_asked_for_and_remembered(run, tmp_path, image, flags, size, fit):
    outcome = run("img2img.py", *RUN, "--init-img", "i.png", "--outdir", "o", *flags)
    assert outcome.code == 0, outcome.err
    assert pixels(tmp_path / "o/samples/00000.png").shape == (*size, 3)
    record = metadata.read_record(tmp_path / "o/samples/00000.png")
    assert record["resolved"]["fit"] == fit and (record["height"], record["width"]) == size


def test_stretch_is_the_published_script_on_an_image_that_is_no_multiple(run, tmp_path, image):
    """That script resizes by Lanczos to the multiple below; an image so resized before gives the same."""
    width, height = (side - side % MULTIPLE for side in image.size)
    image.resize((width, height), Image.LANCZOS).save(tmp_path / "resized.png")
    for name, flags in (("i.png", ("--fit", "stretch")), ("resized.png", ())):
        outcome = run("img2img.py", *RUN, "--init-img", name, "--outdir", name[:-4], *flags)
        assert outcome.code == 0, outcome.err
    made = [pixels(tmp_path / folder / "samples/00000.png") for folder in ("i", "resized")]
    assert np.array_equal(*made)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--fit", "exact", "--H", 64), "70x45"),
        (("--fit", "fill"), "--fit"),
        (("--H", 0), "--H"),
        (("--H", 16_000), "24889x16000"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_the_model_is_read(run, tmp_path, image, flags, says):
    outcome = run("img2img.py", "--ckpt", "nowhere.ckpt", "--init-img", "i.png", "--outdir", "o", *flags)
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("flags", [("--fit", "crop"), ("--H", 16), ("--W", 16)])
def test_latents_cannot_be_fitted(run, tmp_path, flags):
    save_file({"latents": torch.zeros(1, 4, 2, 2)}, tmp_path / "n.safetensors")
    outcome = run("img2img.py", *RUN, "--latents", "n.safetensors", "--outdir", "o", *flags)
    assert outcome.code == 2 and f"{flags[0]} {flags[1]}" in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_stopped_run_goes_on_with_the_image_fitted_as_before(run, tmp_path, image, stop_at):
    flags = *RUN, "--init-img", "i.png", "--H", 20, "--fit", "pad", "--n_iter", 2, "--ddim_steps", 5
    assert run("img2img.py", *flags, "--outdir", "whole").code == 0
    stop_at(6)
    assert run("img2img.py", *flags, "--outdir", "o").code == 75
    stop_at(None)
    stopped = "--latents", "o/interrupted-00000.safetensors"
    refused = run("img2img.py", *stopped, "--fit", "crop")
    assert refused.code == 2 and "--fit crop contradicts" in refused.err
    outcome = run("img2img.py", *stopped)
    assert outcome.code == 0, outcome.err
    for name in ("samples/00000.png", "samples/00001.png"):
        assert np.array_equal(pixels(tmp_path / "o" / name), pixels(tmp_path / "whole" / name))
