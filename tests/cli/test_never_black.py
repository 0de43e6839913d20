"""No command saves a black image, or one of NaN, and exits with 0."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from golden_cases import cases
from ldm.imaging import metadata
from ldm.models.autoencoder import AutoencoderKL

CASE = cases("e2e_txt2img")[0]
CONFIG = ("--config", CASE.files["config"])
QUICK = ("--steps", 3, "--sampler", "ddim", "--H", 16, "--W", 16, "--n_iter", 1, "--n_samples", 1)
RESIDUAL = "model.diffusion_model.input_blocks.1.0.in_layers.2"
TEXT = "cond_stage_model.model.transformer.resblocks.0.mlp.c_proj"
DECODER = "first_stage_model.decoder.up.1.block.0.conv1"


@pytest.fixture
def spoilt(tmp_path):
    """Return a function that writes the tiny model with some layers scaled, and returns the flags for it."""

    def write(*layers, largest=30_000.0):
        weights = load_file(CASE.files["checkpoint"])
        for layer in layers:
            weight = weights[f"{layer}.weight"].float()
            weights[f"{layer}.weight"] = weight / weight.abs().max() * largest
        save_file(weights, tmp_path / "spoilt.safetensors")
        return *CONFIG, "--ckpt", tmp_path / "spoilt.safetensors"

    return write


def saved(folder):
    return sorted(folder.rglob("*.png"))


def check(outcome, folder):
    """An image and 0, or no image and another code."""
    for path in saved(folder):
        with Image.open(path) as image:
            assert np.asarray(image).max() > 2
    assert outcome.code == 0 or outcome.err.startswith(("error: ", "warning: "))
    assert bool(saved(folder)) == (outcome.code == 0)


@pytest.mark.few(1)
@pytest.mark.parametrize("layer", [RESIDUAL, TEXT, DECODER])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_that_overflow_give_an_image(run, tmp_path, spoilt, layer, dtype):
    outcome = run("txt2img.py", *spoilt(layer), *QUICK, "--dtype", dtype, "--outdir", "out")
    assert outcome.code == 0, outcome.err
    check(outcome, tmp_path / "out")


def test_what_was_done_again_is_said_once_and_remembered(run, tmp_path, spoilt):
    outcome = run("txt2img.py", *spoilt(RESIDUAL), *QUICK, "--dtype", "float16", "--outdir", "out")
    assert outcome.err.count("step 1 of 3: float16 gave NaN; continuing in float32 from step 1") == 1
    record = metadata.read_record(saved(tmp_path / "out" / "samples")[0])
    assert record["dtype"] == "float16"
    assert record["computed_in"] == {
        "text encoder": "float16",
        "UNet": "float32, because float16 gave NaN (step 1 of 3)",
        "autoencoder": "float32",
    }


@pytest.mark.few(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layer, where", [(RESIDUAL, "step 1"), (TEXT, "prompts"), (DECODER, "decoding")])
def test_where_float32_overflows_nothing_is_saved(run, tmp_path, spoilt, dtype, layer, where):
    outcome = run("txt2img.py", *spoilt(layer, largest=3e38), *QUICK, "--dtype", dtype, "--outdir", "out")
    assert outcome.code == 4 and saved(tmp_path) == []
    *_, last = outcome.err.strip().splitlines()
    assert last.startswith("error: ") and where in last and "float32" in last
    assert "Traceback" not in outcome.err


def test_weights_that_float16_cannot_hold_are_refused_in_loading(run, tmp_path, spoilt):
    outcome = run("txt2img.py", *spoilt(RESIDUAL, largest=1e6), *QUICK, "--dtype", "float16")
    assert outcome.code == 2 and saved(tmp_path) == [] and "--dtype" in outcome.err


def test_img2img_encodes_again(run, tmp_path, spoilt):
    Image.fromarray(np.full((16, 16, 3), 99, np.uint8)).save(tmp_path / "init.png")
    flags = spoilt("first_stage_model.encoder.down.0.block.0.conv1", RESIDUAL)
    steps = ("--ddim_steps", 4, "--n_samples", 1, "--dtype", "float16", "--outdir", "out")
    outcome = run("img2img.py", *flags, *steps, "--init-img", tmp_path / "init.png")
    assert outcome.code == 0, outcome.err
    check(outcome, tmp_path / "out")


@pytest.fixture
def decode_to(monkeypatch):
    """Let the decoder give these values, an image each time."""

    def pretend(*values):
        values = iter(values)

        def decode(self, z):
            return torch.stack([torch.full((3, 16, 16), next(values)) for _ in z])

        monkeypatch.setattr(AutoencoderKL, "decode", decode)

    return pretend


WEIGHTS = (*CONFIG, "--ckpt", CASE.files["checkpoint"], "--precision", "full", "--outdir", "out")


@pytest.mark.parametrize("black", [-1.0, -5.0, -1 + 2.9 / 127.5])
def test_black_images_are_not_saved(run, tmp_path, decode_to, black):
    """The others are, and the command fails, in one line that names the prompt."""
    decode_to(0.5, black, 0.5)
    outcome = run("txt2img.py", *WEIGHTS, *QUICK, "--n_samples", 3, "--prompt", "a red apple")
    assert outcome.code == 4
    assert [p.name for p in saved(tmp_path / "out")] == ["grid-0000.png", "00000.png", "00001.png"]
    *_, last = outcome.err.strip().splitlines()
    said = "error: 1 image came out all black or NaN, not saved ('a red apple')"
    assert last.startswith(said)


def test_nothing_but_black_leaves_no_files(run, tmp_path, decode_to):
    decode_to(-1.0)
    outcome = run("txt2img.py", *WEIGHTS, *QUICK)
    assert outcome.code == 4 and not (tmp_path / "out").exists()


def test_dark_is_not_black(run, tmp_path, decode_to):
    decode_to(-1 + 3.1 / 127.5)
    assert run("txt2img.py", *WEIGHTS, *QUICK, "--watermark", "off").code == 0
