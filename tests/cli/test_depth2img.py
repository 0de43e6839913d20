"""scripts/depth2img.py as a command: its flags, its files, and wrong input."""

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_model

from golden_cases import GOLDEN, cases
from ldm.imaging import metadata
from ldm.models.midas import MiDaSInference

NARROW = dict(
    stem=16, channels=[32, 64, 96], depths=[1, 2, 2], groups=4, width=48, depth=4, num_heads=4,
    taps=[1, 3], grid=4, classes=5, features=24,
)  # fmt: skip
QUICK = ("--steps", 2, "--precision", "full", "--no-grid", "--outdir", "o", "--prompt", "a cat")
ROWS, COLUMNS = 40, 56
DEPTH = (np.linspace(9000, 50000, ROWS)[:, None] + np.linspace(0, 9000, COLUMNS)).astype(np.uint16)


def complete_cases(kind):
    """Return the golden cases of a kind whose weights are here: SD_GOLDEN names a folder that has them."""
    try:
        found = cases(kind)
    except LookupError:
        return []
    return [case for case in found if (GOLDEN / case.entry["files"]["checkpoint"]).exists()]


def weights_of(task, folder):
    """Write a tiny model and return the flags that name it."""
    config = tiny_config(task, folder)
    save_file(tiny_model(config).state_dict(), folder / f"{task}.safetensors")
    return "--config", config, "--ckpt", folder / f"{task}.safetensors"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return weights_of("depth", tmp_path_factory.mktemp("weights"))


@pytest.fixture
def scene(tmp_path):
    """Put an image with its depth, and a cut-out, into the folder."""
    colours = np.random.default_rng(0).integers(0, 256, (ROWS, COLUMNS, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "room.png")
    Image.fromarray(DEPTH).save(tmp_path / "depth.png")
    np.save(tmp_path / "depth.npy", DEPTH.astype(np.float64))
    y, x = np.mgrid[:ROWS, :COLUMNS]
    alpha = np.where((x - 28) ** 2 + (y - 20) ** 2 < 200, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "cutout.png")
    return tmp_path


def pixels(path):
    with Image.open(path) as image:
        return np.array(image).astype(int)


def read_image(folder, number=0):
    return pixels(folder / "o" / "samples" / f"{number:05d}.png")


@pytest.mark.slow
def test_an_image_and_its_map_give_images_of_its_size_from_another_folder(run_alone, scene, weights):
    flags = (*weights, *QUICK, "--init-img", "room.png", "--depth", "depth.png", "--n_samples", 2)
    outcome = run_alone("depth2img.py", *flags)
    assert outcome.code == 0, outcome.err
    assert sorted(p.name for p in (scene / "o").iterdir()) == ["samples"]
    assert read_image(scene, 1).shape == (ROWS, COLUMNS, 3)
    record = metadata.read_record(scene / "o" / "samples" / "00001.png")
    assert record["task"] == "depth2img" and record["resolved"]["strength"] == 0.9
    inputs = record["inputs"]
    assert inputs["init_img"]["file"] == "room.png" and inputs["depth"]["file"] == "depth.png"
    assert len(inputs["depth"]["sha256"]) == 64 and "depth_invert" not in record["request"]


@pytest.mark.parametrize("case", complete_cases("e2e_depth"), ids=lambda case: case.name)
def test_it_gives_the_image_of_the_published_demo(run, tmp_path, case):
    c = case.config
    Image.fromarray(case.inputs["image_uint8"].numpy()).save(tmp_path / "room.png")
    np.save(tmp_path / "depth.npy", case.inputs["depth_map"].numpy())
    outcome = run(
        "depth2img.py", "--config", case.files["config"], "--ckpt", case.files["checkpoint"],
        "--precision", "full", "--init-img", "room.png", "--depth", "depth.npy", "--prompt", c["prompt"],
        "--negative-prompt", c["negative_prompt"], "--steps", c["steps"], "--strength", c["strength"],
        "--scale", c["scale"], "--ddim_eta", c["eta"], "--seed", c["seed"], "--n_samples", c["num_samples"],
        "--watermark", "off", "--outdir", "o",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    made = np.stack([read_image(tmp_path, i) for i in range(c["num_samples"])])
    case.check("image_uint8", made)


def test_help_is_quick_and_loads_no_torch(run_alone):
    outcome = run_alone("depth2img.py", "--help", python_args=("-X", "importtime"))
    imported = {line.rsplit("|", 1)[-1].strip() for line in outcome.err.splitlines() if "|" in line}
    assert outcome.code == 0 and "argparse" in imported and not imported & {"torch", "numpy", "PIL", "cv2"}
    for words in ("default: 0.9", "--depth-invert", "--depth-from", "--save-depth", "8 or 16 bits, EXR"):
        assert words in " ".join(outcome.out.split())


def test_kinds_of_files_and_directions_agree(run, scene, weights):
    """A map turned around and said to be so is the same map; a map alone takes its own size, or another."""
    values = DEPTH.astype(np.float64)
    np.save(scene / "far.npy", values.max() + values.min() - values)
    np.savez(scene / "metres.npz", 1e6 / values)
    image = ("--init-img", "room.png")
    for i, flags in enumerate([
        (*image, "--depth", "depth.png"),
        (*image, "--depth", "depth.npy"),
        (*image, "--depth", "far.npy", "--depth-invert"),
        (*image, "--depth", "metres.npz", "--depth-invert", "reciprocal"),
        (*image, "--depth", "far.npy"),
        (*image, "--depth", "depth.png", "--strength", 1.0),
        ("--depth", "depth.png"),
        ("--depth", "depth.png", "--H", 80),
    ]):  # fmt: skip
        outcome = run("depth2img.py", *weights, *QUICK, *flags)
        assert outcome.code == 0, (i, outcome.err)
    made = [read_image(scene, i) for i in range(8)]
    for i in (1, 2, 3):
        assert np.abs(made[i] - made[0]).max() <= 1, i
    assert np.abs(made[4] - made[0]).max() > 1 and np.abs(made[5] - made[0]).max() > 1
    assert np.array_equal(made[5], made[6]), "at strength 1 nothing of the image counts"
    assert made[7].shape == (80, 112, 3)
    records = [metadata.read_record(scene / "o" / "samples" / f"{i:05d}.png") for i in (3, 6)]
    assert records[0]["request"]["depth_invert"] == "reciprocal"
    assert "init_img" in records[0]["inputs"] and "init_img" not in records[1]["inputs"]


def test_a_map_that_was_saved_gives_the_same_image(run, scene, weights):
    noisy = (DEPTH.astype(float) / 700) ** 2 - 3
    noisy[3:6, 4:9] = np.nan
    np.save(scene / "raw.npy", noisy)
    flags = (*weights, *QUICK, "--init-img", "room.png")
    assert run("depth2img.py", *flags, "--depth", "raw.npy", "--save-depth").code == 0
    saved = scene / "o" / "depth" / "00000.png"
    with Image.open(saved) as image:
        assert image.mode.startswith("I") and image.size == (COLUMNS, ROWS)
    levels = pixels(saved)
    assert levels.min() == 0 and levels.max() == 65535 and levels[-1, -1] == 65535, "nearest is white"
    assert run("depth2img.py", *flags, "--depth", saved, "--save-depth").code == 0
    assert np.abs(read_image(scene, 1) - read_image(scene, 0)).max() <= 1
    assert np.array_equal(pixels(scene / "o" / "depth" / "00001.png"), levels)


def test_saving_maps_leaves_the_numbers_of_the_grid_alone(run, scene, weights):
    flags = (*(flag for flag in QUICK if flag != "--no-grid"), "--depth", "depth.png", "--save-depth")
    flags += "--n_samples", 2
    for _ in range(2):
        assert run("depth2img.py", *weights, *flags).code == 0
    assert {p.name for p in (scene / "o").iterdir()} == {"samples", "depth", "grid-0000.png", "grid-0001.png"}


def test_an_outline_stands_for_depth(run, scene, weights):
    flags = (*weights, *QUICK, "--init-img", "cutout.png", "--depth-from", "alpha", "--save-depth")
    outcome = run("depth2img.py", *flags)
    assert outcome.code == 0 and "composited" not in outcome.out + outcome.err
    levels = pixels(scene / "o" / "depth" / "00000.png")
    assert levels[20, 28] == 65535 and levels[0, 0] == 0
    record = metadata.read_record(scene / "o" / "samples" / "00000.png")
    assert record["request"]["depth_from"] == "alpha" and record["inputs"]["depth"]["file"] is None


def test_the_depth_network_comes_from_its_own_file(run, scene, weights, tmp_path):
    """The YAML says what the network is like; the file holds it alone, under its published names."""
    network = MiDaSInference(sizes=NARROW)
    torch.manual_seed(0)
    state = {name: 0.1 * torch.randn_like(x) + 0.05 for name, x in network.state_dict().items()}
    torch.save({name.removeprefix("model."): x for name, x in state.items()}, "midas.pt")
    config = json.loads(weights[1].read_text())
    node = {"target": "ldm.modules.midas.api.MiDaSInference", "params": {"sizes": NARROW}}
    config["model"]["params"]["depth_stage_config"] = node
    folder = weights[1].parent
    (folder / "seeing.yaml").write_text(json.dumps(config))
    seeing = ("--config", folder / "seeing.yaml", *weights[2:])
    outcome = run("depth2img.py", *seeing, *QUICK, "--init-img", "room.png")
    assert outcome.code == 2 and "--depth-ckpt" in outcome.err.splitlines()[-1], outcome.err
    assert "loaded" not in outcome.out, "a missing network is reported before the weights are read"
    outcome = run(
        "depth2img.py", *seeing, *QUICK, "--init-img", "room.png", "--depth-ckpt", "midas.pt", "--save-depth"
    )
    assert outcome.code == 0, outcome.err
    record = metadata.read_record(scene / "o" / "samples" / "00000.png")
    assert record["request"]["depth_ckpt"] == "midas.pt" and "depth" not in record["inputs"]
    assert pixels(scene / "o" / "depth" / "00000.png").shape == (288, 384)
    outcome = run("depth2img.py", *seeing, *QUICK, "--init-img", "room.png", "--depth-ckpt", weights[3])
    assert outcome.code == 2 and "holds no weights of the depth estimator" in outcome.err


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_not_with_another_map(run, scene, weights, stop_at):
    flags = ("--steps", 6, *QUICK[2:], "--init-img", "room.png", "--depth", "depth.npy")
    stop_at(2)
    outcome = run("depth2img.py", *weights, *flags)
    assert outcome.code == 75, outcome.err
    stop_at(None)
    command = shlex.split(outcome.err.split("to resume: ")[1].splitlines()[0])
    latents = command[command.index("--latents") + 1]
    assert run("depth2img.py", "--latents", latents).code == 0
    assert run("depth2img.py", *weights, *flags).code == 0
    assert np.array_equal(read_image(scene, 0), read_image(scene, 1))
    np.save(scene / "depth.npy", DEPTH[::-1].copy())
    outcome = run("depth2img.py", "--latents", latents)
    assert outcome.code == 2 and "--depth depth.npy has changed since" in outcome.err


WRONG = [
    ((), "--init-img FILE"),
    (("--init-img", "room.png"), "--depth FILE, --depth-from alpha"),
    (("--init-img", "none.png"), "no such file"),
    (("--init-img", "room.png", "--depth", "none.exr"), "no such file"),
    (("--init-img", "room.png", "--depth", "room.png"), "in colour"),
    (("--init-img", "room.png", "--depth", "cropped.npy"), "another aspect ratio"),
    (("--depth", "nan.npy"), "every pixel"),
    (("--depth", "depth.png", "--strength", 0.5), "without an image"),
    (("--depth", "depth.png", "--H", 64, "--W", 64), "another aspect ratio"),
    (("--depth", "depth.png", "--strength", 1.5), "--strength"),
    (("--depth", "depth.png", "--depth-invert", "mirror"), "--depth-invert"),
    (("--init-img", "room.png", "--depth-invert"), "--depth-invert"),
    (("--init-img", "room.png", "--depth", "depth.png", "--H", 64), "without --init-img"),
    (("--init-img", "room.png", "--depth", "depth.png", "--depth-from", "network"), "give only one of them"),
    (("--init-img", "room.png", "--depth", "depth.png", "--depth-ckpt", "midas.pt"), "give only one of them"),
    (("--init-img", "room.png", "--depth-from", "alpha"), "opaque throughout"),
    (("--init-img", "room.png", "--depth-ckpt", "none.pt"), "none.pt"),
]


@pytest.mark.few(6)
@pytest.mark.parametrize(
    "flags, words", WRONG, ids=lambda x: " ".join(map(str, x)) if type(x) is tuple else ""
)
def test_wrong_input_is_one_line_and_leaves_nothing(run, scene, weights, flags, words):
    np.save(scene / "cropped.npy", DEPTH[:-4])
    np.save(scene / "nan.npy", np.full((4, 4), np.nan))
    outcome = run("depth2img.py", *weights, *QUICK, *flags)
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert outcome.code == 2 and len(errors) == 1 and words in errors[0], outcome.err
    assert not (scene / "o").exists() and "Traceback" not in outcome.err


def test_another_model_is_told_its_script(run, scene, tmp_path_factory):
    other = weights_of("inpaint", tmp_path_factory.mktemp("inpaint"))
    outcome = run("depth2img.py", *other, *QUICK, "--depth", "depth.png")
    assert outcome.code == 2 and "use it with scripts/inpaint.py" in outcome.err
