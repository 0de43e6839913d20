"""scripts/unclip.py as a user meets it: images, statistics beside the weights, stopping, wrong input."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_model

from golden_cases import cases
from ldm.imaging import metadata
from ldm.loading import load_model
from ldm.requests import Unclip
from ldm.requests.resolving import ModelFacts, resolved

TEXT_TO_IMAGE = cases("e2e_txt2img")[0].files
PUBLISHED_STATISTICS = "checkpoints/karlo_models/ViT-L-14_stats.th"
QUICK = "--steps", 2, "--H", 33, "--W", 48, "--n_samples", 1


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Return (YAML, weights) of both kinds; L's statistics are where its YAML says."""
    found = {}
    for task in ("unclip-h", "unclip-l"):
        folder = tmp_path_factory.mktemp(task)
        config = tiny_config(task, folder)
        weights = {name: x.contiguous() for name, x in tiny_model(config).state_dict().items()}
        save_file(weights, folder / "model.safetensors", {"sd.prediction": "v"})
        found[task] = config, folder / "model.safetensors"
    return found


@pytest.fixture(params=["unclip-h", "unclip-l"])
def model(files, request) -> tuple:
    config, weights = files[request.param]
    return "--config", config, "--ckpt", weights, "--precision", "full"


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """Return images of one pixel, with transparency, and an ordinary one."""
    draw = np.random.default_rng(0).integers
    for name, shape in (("one.png", (1, 1, 3)), ("clear.png", (20, 70, 4)), ("photo.png", (50, 40, 3))):
        Image.fromarray(draw(0, 256, shape, np.uint8)).save(tmp_path / name)
    return [tmp_path / name for name in ("one.png", "clear.png", "photo.png")]


def saved(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "samples").glob("*.png"))]


@pytest.mark.few(1)
def test_a_variation_and_a_mix_of_images(run, model, images, tmp_path):
    flags = "--image-weights", 2, -0.5, 1, "--noise-level", 0, 100, 999, "--mix-noise-level", 20
    outcome = run("unclip.py", *model, *QUICK, "--init-img", *images, *flags, "--outdir", "mix")
    assert outcome.code == 0, outcome.err
    made = tmp_path / "mix" / "samples" / "00000.png"
    with Image.open(made) as image:
        assert image.size == (48, 33)
    record = metadata.read_record(made)
    mix = {"mix_noise_level": 20, "image_weights": [2, -0.5, 1], "noise_level": [0, 100, 999]}
    assert record["task"] == "unclip" and mix.items() <= record["resolved"].items()
    for about, path in zip(record["inputs"]["init_img"], images, strict=True):
        assert about == {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    outcome = run("unclip.py", *model, *QUICK, "--init-img", images[0], "--outdir", "one")
    assert outcome.code == 0, outcome.err
    record = metadata.read_record(tmp_path / "one" / "samples" / "00000.png")
    assert not {"mix_noise_level", "image_weights"} & record["request"].keys()
    assert len(record["inputs"]["init_img"]) == 1
    assert (record["resolved"]["steps"], record["resolved"]["scale"]) == (2, 10.0)


def test_the_mix_is_noised_as_published_unless_said_otherwise(run, files, images, tmp_path):
    config, weights = files["unclip-h"]
    levels = {"usual": (), "50": ("--mix-noise-level", 50), "off": ("--mix-noise-level", "off")}
    for folder, level in levels.items():
        flags = "--config", config, "--ckpt", weights, "--init-img", *images, *level, "--outdir", folder
        outcome = run("unclip.py", *QUICK, *flags, "--no-metadata")
        assert outcome.code == 0, outcome.err
    usual, explicit, off = (saved(tmp_path / folder) for folder in ("usual", "50", "off"))
    assert usual == explicit != off


@pytest.mark.slow
@pytest.mark.parametrize("rng", ["reference", "per-image"])
def test_a_stopped_run_goes_on_exactly_with_the_same_images_only(
    run, files, images, tmp_path, stop_at, rng
):
    config, weights = files["unclip-l"]
    flags = "--config", config, "--ckpt", weights, "--init-img", *images[1:], "--rng", rng, "--steps", 3
    flags += "--sampler", "euler_a", "--n_samples", 2, "--n_iter", 2, "--no-grid", "--H", 32, "--W", 32
    assert run("unclip.py", *flags, "--outdir", "whole").code == 0
    stop_at(4)
    outcome = run("unclip.py", *flags, "--outdir", "o")
    assert outcome.code == 75, outcome.err
    stop_at(None)
    file = "--latents", "o/interrupted-00000.safetensors"
    before = images[1].read_bytes()
    Image.new("RGB", (70, 20)).save(images[1])
    outcome = run("unclip.py", *file)
    assert outcome.code == 2 and "clear.png has changed since o/interrupted" in outcome.err
    outcome = run("unclip.py", *file, "--image-weights", 1, 2)
    assert outcome.code == 2 and "contradicts" in outcome.err
    images[1].write_bytes(before)
    outcome = run("unclip.py", *file)
    assert outcome.code == 0, outcome.err
    assert saved(tmp_path / "o") == saved(tmp_path / "whole") and len(saved(tmp_path / "o")) == 4


def test_noise_may_be_given_and_finished_latents_are_not_noise(run, files, images):
    config, weights = files["unclip-h"]
    model = "--config", config, "--ckpt", weights, "--init-img", images[2], *QUICK
    save_file({"noise": torch.randn(1, 4, 8, 8)}, "noise.safetensors")
    outcome = run("unclip.py", *model, "--latents", "noise.safetensors", "--save-latents")
    assert outcome.code == 0, outcome.err
    finished = "outputs/unclip-samples/samples/00000.latents.safetensors"
    outcome = run("unclip.py", *model, "--latents", finished)
    assert outcome.code == 2 and "of a finished image" in outcome.err


def with_statistics_named(files, folder: Path) -> tuple[Path, Path]:
    """Return YAML and weights of L in `folder`, whose YAML names the statistics as the published one does."""
    config, weights = files["unclip-l"]
    node = json.loads(config.read_text())
    node["model"]["params"]["noise_aug_config"]["params"]["clip_stats_path"] = PUBLISHED_STATISTICS
    folder.mkdir(parents=True)
    (folder / "l.yaml").write_text(json.dumps(node))
    (folder / "l.safetensors").write_bytes(weights.read_bytes())
    return folder / "l.yaml", folder / "l.safetensors"


def test_missing_statistics_are_one_line_and_beside_the_weights_they_do(run, files, images, tmp_path):
    config, weights = with_statistics_named(files, tmp_path / "models")
    flags = *QUICK, "--config", config, "--ckpt", weights, "--init-img", images[2]
    outcome = run("unclip.py", *flags)
    assert outcome.code == 2 and not (tmp_path / "outputs").exists()
    (error,) = outcome.err.splitlines()
    assert error.startswith(f"error: clip_stats_path {PUBLISHED_STATISTICS}: no such file")
    assert error.endswith("put it next to the checkpoint")
    torch.save((torch.zeros(40), torch.ones(40)), weights.parent / "ViT-L-14_stats.th")
    outcome = run("unclip.py", *flags)
    assert outcome.code == 2 and "width 40, but the image embeddings of this model have 32" in outcome.err
    torch.save((torch.zeros(32), torch.ones(32)), weights.parent / "ViT-L-14_stats.th")
    outcome = run("unclip.py", *flags)
    assert outcome.code == 0, outcome.err


@pytest.mark.few(2)
@pytest.mark.parametrize("suffix", [".th", ".pt", ".npz", ".safetensors"])
@pytest.mark.parametrize("beside", ["", "karlo_models"])
def test_statistics_of_every_kind_are_found(files, tmp_path, suffix, beside):
    """Beside the weights, or in the folder beside them that the published page has."""
    config, weights = with_statistics_named(files, tmp_path / "checkpoints")
    mean, std = torch.arange(32).float(), torch.arange(32) + 1.0
    place = weights.parent / beside / f"ViT-L-14_stats{suffix}"
    place.parent.mkdir(exist_ok=True)
    if suffix == ".npz":
        np.savez(place, mean=mean, std=std)
    elif suffix == ".safetensors":
        save_file({"mean": mean, "std": std}, place)
    else:
        torch.save((mean, std), place)
    augmentor = load_model(config, weights, device="cpu", dtype="float32").noise_augmentor
    assert torch.equal(augmentor.data_mean[0], mean) and torch.equal(augmentor.data_std[0], std)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "--init-img is missing: give the image to vary, or several"),
        (("--init-img",), "expected at least one argument"),
        (("--init-img", "nowhere.png"), "nowhere.png: there is no such file"),
        (("--init-img", "photo.png", "text.txt"), "text.txt: not an image"),
        (("--init-img", "photo.png", "--image-weights", 1, 2), "2 weights for 1 image;"),
        (("--init-img", "photo.png", "one.png", "--image-weights", 1, -1), "1, -1, sum to 0"),
        (("--init-img", "photo.png", "--image-weights", "nan"), "expected a number"),
        (("--init-img", "photo.png", "--noise-level", 1, 2), "2 noise levels for 1 image;"),
        (("--init-img", "photo.png", "--noise-level", 1000), "from 0 to 999"),
        (("--init-img", "photo.png", "--noise-level", -1), "from 0 to 999"),
        (("--init-img", "photo.png", "--mix-noise-level", 50), "needs more than one --init-img"),
        (("--init-img", "photo.png", "one.png", "--mix-noise-level", "on"), "from 0 to 999, or off"),
    ],
)
def test_wrong_input_is_one_line_before_the_model_is_loaded(run, images, tmp_path, flags, says):
    (tmp_path / "text.txt").write_text("no image")
    outcome = run("unclip.py", *flags, "--ckpt", "never-looked-at.ckpt")
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1, outcome.err
    assert not (tmp_path / "outputs").exists()


def test_a_model_for_another_task_names_its_script(run, files, images):
    other = "--config", TEXT_TO_IMAGE["config"], "--ckpt", TEXT_TO_IMAGE["checkpoint"]
    outcome = run("unclip.py", *QUICK, *other, "--init-img", images[2])
    assert outcome.code == 2 and "use it with scripts/txt2img.py" in outcome.err
    config, weights = files["unclip-l"]
    outcome = run("txt2img.py", *QUICK, "--config", config, "--ckpt", weights)
    assert outcome.code == 2 and "unCLIP-L" in outcome.err and "use it with scripts/unclip.py" in outcome.err


def test_without_weights_the_demonstration_model_makes_its_own_size(run, images, tmp_path):
    outcome = run("unclip.py", "--init-img", images[2], "--steps", 2, "--n_samples", 1, "--scale", 3)
    assert outcome.code == 0 and "using the small demo model" in outcome.out, outcome.err
    with Image.open(tmp_path / "outputs" / "unclip-samples" / "samples" / "00000.png") as image:
        assert image.size == (128, 128)


def test_the_defaults_are_those_of_the_published_page():
    request = resolved(Unclip(), ModelFacts(768, 768, 4, 8))
    assert (request.steps, request.scale, request.eta, request.seed) == (20, 10.0, 0.0, 42)
    assert request.noise_level == (0,)
    assert request.prompt == "", "where the page has words that say nothing of the image"
    assert (request.TASKS, request.DEMO) == (("unclip-h", "unclip-l"), "emoji_unclip")
