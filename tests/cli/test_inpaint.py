"""scripts/inpaint.py as a user meets it."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_model

from ldm.cli.flags import parser_of
from ldm.cli.reference_flags import folded
from ldm.imaging import metadata
from ldm.imaging.profiles import made_profile
from ldm.requests import Inpaint, build
from ldm.requests.resolving import ModelFacts, resolved

SD = ModelFacts(native_size=512, training_size=512, latent_channels=4, latent_factor=8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return the flags for a tiny model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    flags = {}
    for kind in ("inpaint", "sd2", "depth", "upscale"):
        config = tiny_config(kind, folder)
        state = {name: x.contiguous() for name, x in tiny_model(config).state_dict().items()}
        save_file(state, folder / f"{kind}.safetensors")
        flags[kind] = ("--config", config, "--ckpt", folder / f"{kind}.safetensors", "--prediction", "eps")
    return flags


@pytest.fixture
def files(tmp_path):
    """Put an image, one with alpha, and masks into the folder of the run; return the pixels of both."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
    mask = np.zeros((40, 56), np.uint8)
    mask[12:28, 20:40] = 255
    pixels[..., 3] = 255 - mask
    Image.fromarray(pixels[..., :3]).save(tmp_path / "rgb.png")
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(255 - mask).save(tmp_path / "inverse.png")
    Image.fromarray(mask[1:]).save(tmp_path / "small.png")
    Image.fromarray(0 * mask).save(tmp_path / "black.png")
    return pixels, mask > 0


FAST = "--steps", 2, "--n_samples", 1, "--no-grid", "--prompt", "a cat", "--quiet"
GIVEN = "--init-img", "rgb.png", "--mask"
RUN = *FAST, *GIVEN, "mask.png"


def saved(folder, number: int = 0) -> np.ndarray:
    with Image.open(folder / "samples" / f"{number:05d}.png") as image:
        return np.asarray(image)


def test_every_byte_outside_the_mask_stays_under_the_watermark_too(run, tmp_path, models):
    pixels = np.random.default_rng(1).integers(0, 256, (259, 257, 4), np.uint8)
    mask = np.zeros((259, 257), np.uint8)
    mask[90:170, 80:180] = 255
    Image.fromarray(pixels).save(tmp_path / "i.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    flags = *models["sd2"], *FAST, "--init-img", "i.png", "--mask", "m.png"
    outcome = run("inpaint.py", *flags, "--steps", 1, "--watermark", "on", "--outdir", "o")
    assert outcome.code == 0, outcome.err
    result, kept = saved(tmp_path / "o"), mask == 0
    assert result.shape == pixels.shape and np.array_equal(result[kept], pixels[kept])
    assert (result[~kept][:, 3] == 255).all(), "what was transparent is painted"
    assert "SDV2" in metadata.read_record(tmp_path / "o/samples/00000.png")["watermark"]


def test_bytes_keep_their_colour_profile(run, tmp_path, models, files):
    pixels, mask = files
    p3 = made_profile(2.2, (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06))
    Image.fromarray(pixels[..., :3]).save(tmp_path / "rgb.png", icc_profile=p3)
    for flags in (), ("--raw",):
        outcome = run("inpaint.py", *models["sd2"], *RUN[:-1], "mask.png", *flags, "--outdir", "o")
        assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "o/samples/00000.png") as image:
        assert image.info["icc_profile"] == p3
        assert np.array_equal(np.asarray(image)[~mask], pixels[~mask][:, :3])
    with Image.open(tmp_path / "o/samples/00001.png") as image:
        assert "icc_profile" not in image.info, "decoded as it is, in sRGB"


def test_the_mask_may_come_as_a_file_inverted_or_as_alpha(run, tmp_path, models, files):
    pixels, mask = files
    ways = {
        "file": ("rgb.png", "--mask", "mask.png"),
        "inverted": ("rgb.png", "--mask", "inverse.png", "--invert-mask"),
        "alpha": ("rgba.png",),
    }
    results = {}
    for name, (image, *flags) in ways.items():
        outcome = run("inpaint.py", *models["sd2"], *FAST, "--init-img", image, *flags, "--outdir", name)
        assert outcome.code == 0, outcome.err
        results[name] = saved(tmp_path / name)
    assert np.array_equal(results["file"], results["inverted"])
    assert np.array_equal(results["file"][~mask], pixels[~mask][:, :3])
    assert np.array_equal(results["alpha"][~mask], pixels[~mask]) and results["alpha"].shape[2] == 4


def test_grown_blurred_and_only_masked(run, tmp_path, models, files):
    pixels, mask = files
    grown = np.zeros_like(mask)
    grown[12 - 3 : 28 + 3, 20 - 3 : 40 + 3] = True
    flags = "--mask-grow", 3, "--mask-blur", 2, "--only-masked", 4, "--outdir", "o"
    outcome = run("inpaint.py", *models["inpaint"], *RUN, *flags)
    assert outcome.code == 0, outcome.err
    changed = (saved(tmp_path / "o") != pixels[..., :3]).any(2)
    assert changed[~mask].any() and not changed[~grown].any()
    record = metadata.read_record(tmp_path / "o/samples/00000.png")
    assert {"mask_blur": 2, "only_masked": 4, "mask_grow": 3}.items() <= record["resolved"].items()
    mask = record["inputs"]["mask"]
    assert mask["file"] == "mask.png" and len(mask["sha256"]) == 64


def test_the_defaults_are_the_published_pages(run, files):
    request = resolved(Inpaint(), SD)
    assert (request.steps, request.scale) == (45, 10)
    assert (request.n_samples, request.n_iter, request.strength) == (4, 1, 1)
    etas = {
        (): 1, ("--ddim_eta", 0): 0, ("--eta", 0.5): 0.5, ("--sampler", "euler"): 0,
        ("--sampler", "euler_a"): 1, ("--sampler", "euler", "--ddim_eta", 1): 0, ("--sampler", "DDIM"): 1,
        ("--sampler", "DDIM", "--ddim_eta", 0): 0, ("--ddim_eta", 1, "--eta", 0.5): 0.5,
    }  # fmt: skip
    for flags, eta in etas.items():
        args = parser_of(Inpaint, "").parse_args([str(flag) for flag in flags])
        assert resolved(build(Inpaint, folded(Inpaint, vars(args))), SD).eta == eta, flags
    outcome = run("inpaint.py", *RUN, "--eta", 0.5, "--ddim_eta", 0.2)
    assert outcome.code == 2 and "contradict" in outcome.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--mask", "mask.png"), "--init-img is missing: give the image to repaint"),
        (("--init-img", "rgb.png"), "give --mask FILE, which is white there, or an image that is"),
        ((*GIVEN, "small.png"), "the mask is 56x39 and the image is 56x40"),
        ((*GIVEN, "black.png"), "nothing to repaint"),
        ((*GIVEN, "mask.png", "--mask-grow", "-9"), "nothing to repaint"),
        ((*GIVEN, "none.png"), "none.png: there is no such file"),
        ((*GIVEN, "text.png"), "text.png: not an image"),
        ((*GIVEN, "mask.png", "--strength", "1.5"), "expected a number from 0 to 1"),
        ((*GIVEN, "mask.png", "--raw", "--only-masked", "3"), "cannot be combined with --only-masked"),
        ((*GIVEN, "mask.png", "--raw", "--mask-blur", "3"), "cannot be combined with --mask-blur"),
        ((*GIVEN, "mask.png", "--only-masked", "3", "--save-latents"), "cannot be combined with --only-m"),
        ((*GIVEN, "mask.png", "--mask-blur", "-1"), "expected a whole number"),
    ],
)
def test_wrong_input_is_one_line_before_the_model_is_loaded(run, tmp_path, files, flags, message):
    (tmp_path / "text.png").write_text("no image")
    outcome = run("inpaint.py", *flags, "--ckpt", "never-looked-at.safetensors", "--outdir", "o")
    assert outcome.code == 2 and message in outcome.err, outcome.err
    assert outcome.err.count("\n") == 1 and not (tmp_path / "o").exists()


@pytest.mark.parametrize("kind", ["depth", "upscale"])
def test_a_model_of_another_task_is_sent_to_its_script(run, tmp_path, models, files, kind):
    outcome = run("inpaint.py", *models[kind][2:4], *RUN, "--outdir", "o")
    assert outcome.code == 2 and f"scripts/{kind}" in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("kind", "rng", "flags", "step"),
    [
        ("inpaint", "reference", ("--strength", 0.8), 5),
        ("sd2", "reference", (), 6),
        ("inpaint", "per-image", ("--only-masked", 4), 2),
    ],
)
def test_a_stopped_run_goes_on_exactly(run, tmp_path, models, files, stop_at, kind, rng, flags, step):
    """In its first batch and in its second; every draw is where it would have been."""
    flags = *models[kind], *RUN, "--steps", 4, "--n_samples", 2, "--n_iter", 2, "--rng", rng, *flags
    assert run("inpaint.py", *flags, "--outdir", "whole").code == 0
    stop_at(step)
    assert run("inpaint.py", *flags, "--outdir", "o").code == 75
    stop_at(None)
    stopped = "--latents", "o/interrupted-00000.safetensors"
    original = (tmp_path / "mask.png").read_bytes()
    Image.fromarray(np.full((40, 56), 255, np.uint8)).save(tmp_path / "mask.png")
    outcome = run("inpaint.py", *stopped)
    assert outcome.code == 2 and f"--mask mask.png has changed since {stopped[1]}" in outcome.err
    (tmp_path / "mask.png").write_bytes(original)
    outcome = run("inpaint.py", *stopped)
    assert outcome.code == 0, outcome.err
    whole = sorted((tmp_path / "whole/samples").glob("*.png"))
    assert len(whole) == 4
    for path in whole:
        assert path.read_bytes() == (tmp_path / "o/samples" / path.name).read_bytes(), path.name


def test_finished_latents_decode_to_the_raw_image(run, tmp_path, models, files):
    """By txt2img.py, though the model is for this task."""
    flags = *models["inpaint"], *RUN, "--save-latents", "--outdir", "o"
    assert run("inpaint.py", *flags).code == 0 and run("inpaint.py", *flags, "--raw").code == 0
    for number in (0, 1):
        file = f"o/samples/{number:05d}.latents.safetensors"
        outcome = run("txt2img.py", "--latents", file, "--outdir", "again", "--quiet")
        assert outcome.code == 0, outcome.err
        assert np.array_equal(saved(tmp_path / "again", number), saved(tmp_path / "o", 1))
