"""Every task's image is made again from its own metadata, equal to the bit, or it is said what is missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

from ldm.checkpoint.conversion import ConvertOptions, convert
from ldm.imaging import metadata
from ldm.jobs.execute import execute
from ldm.requests import NAMES, Img2Img

HIRES = "--hires", 1.5, "--hires-strength", 0.9
QUICK = "--steps", 2, "--sampler", "euler_a", "--seed", 11, "--no-grid", "--quiet", "--outdir", "o"
SMALL = "--H", 16, "--W", 24
IMAGE = "--init-img", "photo.png"
TASKS = {
    "txt2img": ("sd2", (*SMALL, "--from-file", "prompts.txt", "--n_samples", 2)),
    "txt2img hires": ("sd2", (*SMALL, *HIRES, "--prompt", "a cat", "--n_samples", 2)),
    "sample": ("sd2", (*SMALL, "--n_samples", 2)),
    "img2img": ("sd2", (*IMAGE, "--prompt", "a cat", "--H", 20, "--strength", 0.9)),
    "img2img latents": ("sd2", ("--latents", "noise.safetensors", "--prompt", "a", "--n_samples", 2)),
    "txt2img latents": ("sd2", (*SMALL, "--latents", "noise.safetensors", "--prompt", "a", "--n_samples", 2)),
    "inpaint": ("inpaint", (*IMAGE, "--mask", "mask.png", "--mask-grow", 2, "--n_samples", 2)),
    "inpaint alpha": ("sd2", ("--init-img", "cutout.png", "--invert-mask", "--n_samples", 1)),
    "outpaint": ("inpaint", (*IMAGE, "--left", 8, "--window", 32)),
    "depth2img": ("depth", (*IMAGE, "--depth", "depth.npy", "--depth-invert", "reciprocal")),
    "depth2img alpha": ("depth", ("--init-img", "cutout.png", "--depth-from", "alpha")),
    "depth2img alone": ("depth", ("--depth", "depth.npy", "--H", 24)),
    "controlnet": ("controlnet", (*SMALL, "--control", "canny:photo.png@0.8[0-0.6]", "--n_samples", 2)),
    "upscale": ("upscale", ("--init-img", "small.png", "--noise-level", 5)),
    "unclip": ("unclip-h", ("--init-img", "photo.png", "in/other.png", "--image-weights", 1, 2, *SMALL)),
}


@pytest.fixture(autouse=True)
def _files(tmp_path):
    """Put what the commands read into the folder of the run."""
    draw = np.random.default_rng(0).integers
    (tmp_path / "in").mkdir()
    for name, shape in {"photo": (20, 30, 3), "small": (6, 5, 3), "in/other": (9, 9, 3)}.items():
        Image.fromarray(draw(0, 256, shape, np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 8:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack([draw(0, 256, (20, 30, 3), np.uint8), mask])).save(tmp_path / "cutout.png")
    np.save(tmp_path / "depth.npy", np.add.outer(np.arange(1, 21), np.arange(30)).astype(np.float32))
    save_file({"latents": torch.randn(2, 4, 4, 4)}, tmp_path / "noise.safetensors")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n{a|b} fox\n")


@pytest.fixture
def made(run, tmp_path, tiny_weights, open_once):
    """Return a function that runs a command with --files flags for rerun, and returns its images."""

    def make(task: str, *flags: object) -> list[Path]:
        kind, own = TASKS[task]
        outcome = run(f"{task.split()[0]}.py", *tiny_weights(kind), *QUICK, *own, *flags)
        assert outcome.code == 0, outcome.err
        return sorted((tmp_path / "o" / "samples").glob("*.png"))

    return make


@pytest.fixture
def rerun(run, tiny_weights):
    """Return a function that makes images again, with weights from where they are."""

    def rerun(*args: object, kind: str = "sd2"):
        return run("rerun.py", "--quiet", *args, "--files", Path(tiny_weights(kind)[3]).parent)

    return rerun


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def change(path: Path, record: dict | None = None, pixel: int = 0) -> Path:
    """Write the image again with another record, or with a pixel that is lighter or darker by so much."""
    with Image.open(path) as image:
        values, text = np.array(image), dict(image.text)
    if pixel:
        values[0, 0] += np.where(values[0, 0] < 128, pixel, -pixel).astype(np.uint8)
    if record is not None:
        text["ldm"] = json.dumps(record)
    chunks = PngImagePlugin.PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    Image.fromarray(values).save(path, pnginfo=chunks)
    return path


def test_every_task_is_here():
    assert {task.split()[0] for task in TASKS} == set(NAMES)


@pytest.mark.few(2)
@pytest.mark.parametrize("task", TASKS)
def test_an_image_of_a_later_batch_is_made_again_equal(made, rerun, task):
    images = made(task, "--n_iter", 2)
    outcome = rerun(images[-1], kind=TASKS[task][0])
    assert (outcome.code, outcome.out) == (0, f"{images[-1]}: equal\n"), outcome.err


@pytest.mark.few(2)
@pytest.mark.parametrize("flags", [("--rng", "per-image"), ("--rng", "gpu-philox"), ("--fixed_code",), (
    "--rng", "per-image", "--fixed_code", "--guidance-rescale", 0.7, "--guidance-interval", "0.1,0.9",
)])  # fmt: skip
def test_every_source_of_random_numbers_and_every_place_in_the_run(made, rerun, flags):
    """Batches of two and one, in two passes, of templates too."""
    images = made("txt2img", "--n_iter", 2, "--combinations", "all", *flags)
    assert len(images) == 8
    outcome = rerun(*images[1:7:2], images[-1])
    assert outcome.code == 0 and outcome.out.count(": equal\n") == 4, outcome.out + outcome.err


def test_only_the_batch_of_the_image_is_made(made, rerun, monkeypatch):
    from ldm.cli.progress import Bars

    shown, original = [], Bars.batches
    monkeypatch.setattr(
        Bars, "batches", lambda self, batches, total: shown.append(total) or original(self, batches, total)
    )
    for rng in ("reference", "per-image"):
        image = made("txt2img", "--n_iter", 2, "--rng", rng)[-1]
        shown.clear()
        assert rerun(image).code == 0 and shown == [1]


def test_files_that_are_missing_or_have_changed_are_all_named(made, rerun, run, tmp_path):
    image = made("inpaint")[0]
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    shutil.move(tmp_path / "mask.png", tmp_path / "in" / "mask.png")
    before = sorted(tmp_path.rglob("*"))
    outcome = run("rerun.py", image)
    assert outcome.code == 2 and sorted(tmp_path.rglob("*")) == before
    (error,) = outcome.err.splitlines()
    assert error.startswith(f"error: {image}: ")
    assert error.endswith("; give the folder of the files with --files DIR")
    for words in ("init-img photo.png has changed", "mask mask.png is missing", "ckpt model.safetensors is"):
        assert f"--{words}" in error
    (tmp_path / "photo.png").unlink()
    outcome = rerun(image, "--files", "in", kind="inpaint")
    assert outcome.code == 2 and "--init-img photo.png is missing" in outcome.err
    assert "mask" not in outcome.err and "ckpt" not in outcome.err


def test_weights_that_have_changed_are_named(made, run, tmp_path, tiny_weights):
    image = made("txt2img")[0]
    shutil.copytree(Path(tiny_weights("sd2")[3]).parent, tmp_path / "w")
    (tmp_path / "w" / "model.safetensors").write_bytes(b"other")
    outcome = run("rerun.py", image, "--files", "w")
    assert outcome.code == 2 and "--ckpt w/model.safetensors has changed" in outcome.err


@pytest.fixture
def own_files(tmp_path, tiny_weights):
    """Return flags for a configuration, weights as a diffusers folder, and a VAE, which a test may change."""
    _, config, _, weights = tiny_weights("sd2")
    place = tmp_path / "own"
    convert(weights, tmp_path / "folder", ConvertOptions(config=str(config)))
    shutil.copytree(Path(config).parent, place)
    shutil.move(tmp_path / "folder", place / "folder")
    shutil.copytree(place / "folder" / "vae", place / "vae")
    return "--config", place / Path(config).name, "--ckpt", place / "folder", "--vae", place / "vae"


def _with_ema(text: str) -> str:
    return text.replace('"use_ema": false', '"use_ema": true')


def _add_a_blank(own: Path) -> None:
    file = own / "folder" / "unet" / "config.json"
    file.write_text(file.read_text() + " ")


CHANGES = {
    "comment": (lambda own: (own / "sd2.yaml").write_text((own / "sd2.yaml").read_text() + "\n# x"), None),
    "vae": (lambda own: (own / "vae" / "config.json").write_text("{}"), "--vae own/vae has changed"),
    "folder": (_add_a_blank, "--ckpt own/folder has changed"),
    "config": (
        lambda own: (own / "sd2.yaml").write_text(_with_ema((own / "sd2.yaml").read_text())),
        "--config sd2.yaml has changed",
    ),
}


@pytest.mark.few(1)
@pytest.mark.parametrize("which", CHANGES)
def test_a_folder_a_vae_or_a_yaml_that_has_changed_is_noticed(which, run, own_files, stop_at, tmp_path):
    run_flags = *QUICK, *SMALL, "--n_samples", 1, "--n_iter", 1, "--prompt", "a cat"
    assert run("txt2img.py", *run_flags, *own_files).code == 0
    stop_at(1)
    assert run("txt2img.py", *run_flags, *own_files).code == 75
    stop_at(None)
    model = metadata.read_record(tmp_path / "o/samples/00000.png")["model"]
    assert all(len(model[name]) == 64 for name in ("sha256", "vae_sha256", "config_sha256"))
    act, says = CHANGES[which]
    act(tmp_path / "own")
    again = run("rerun.py", "o/samples/00000.png", "--quiet", "--files", "own")
    resumed = run("txt2img.py", "--latents", "o/interrupted-00000.safetensors")
    if says is None:
        assert (again.code, resumed.code) == (0, 0), again.err + resumed.err
        return
    assert again.code == resumed.code == 2
    assert says in again.err and again.err.count("\n") == 1
    assert "has changed" in resumed.err or "give --ckpt with those weights" in resumed.err, resumed.err


@pytest.mark.slow
def test_another_demo_model_is_refused(run, tmp_path, monkeypatch, tiny_weights):
    from ldm.jobs import opening

    for kind in ("sd2", "sd1"):
        files = tuple(Path(tiny_weights(kind)[i]) for i in (1, 3))
        monkeypatch.setattr(opening, "demo_files", lambda name, files=files: files)
        if kind == "sd2":
            assert run("txt2img.py", *QUICK, *SMALL, "--n_iter", 1, "--n_samples", 1).code == 0
            outcome = run("rerun.py", "o/samples/00000.png", "--quiet")
            assert (outcome.code, outcome.out) == (0, "o/samples/00000.png: equal\n"), outcome.err
    outcome = run("rerun.py", "o/samples/00000.png")
    assert outcome.code == 2 and "was made with model.safetensors (SHA-256 " in outcome.err


def test_options_are_changed_and_the_rest_stays(made, rerun, tmp_path):
    image = made("txt2img", "--n_iter", 1)[2]
    outcome = rerun(image, "--with", "seed=7", "scale=5")
    new = Path("outputs/rerun/samples/00000.png")
    assert (outcome.code, outcome.out) == (0, f"{image}: changed as asked, {new}\n"), outcome.err
    before, after = metadata.read_record(image), metadata.read_record(tmp_path / new)
    assert before["prompt"] == after["prompt"] == "{a|b} fox"
    changed = {name for name, value in before["resolved"].items() if after["resolved"][name] != value}
    assert changed == {"seed", "scale"} and (after["seed"], after["request"]["scale"]) == (7, 5.0)
    assert (pixels(tmp_path / new) != pixels(image)).any()
    outcome = rerun(image, "--with", "prompt=a dog", "--outdir", "p")
    assert outcome.code == 0 and metadata.read_record(tmp_path / "p/samples/00000.png")["prompt"] == "a dog"
    outcome = rerun(tmp_path / new)
    assert outcome.out == f"{tmp_path / new}: equal\n", "what was made again can be made again"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("sed=7", "Txt2Img has no option 'sed'; did you mean 'seed'?"),
        ("seed", "--with seed: expected NAME=VALUE, such as seed=7"),
        ("steps=0", "steps: got '0', expected a whole number from 1 up"),
        ("sampler=eulr", "unknown sampler 'eulr'"),
    ],
)
def test_impossible_changes_are_one_line(made, rerun, tmp_path, change, says):
    image = made("txt2img")[0]
    outcome = rerun(image, "--with", change)
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_difference_is_measured(made, rerun, tmp_path):
    near, different, equal, *_ = made("txt2img", "--n_iter", 2)
    change(near, pixel=3)
    outcome = rerun(near, equal)
    assert outcome.code == 0
    assert outcome.out == f"{near}: near, largest difference 3 of 255\n{equal}: equal\n"
    record = metadata.read_record(different) | {"torch": "1.0"}
    change(different, record, pixel=100)
    outcome = rerun(different, equal, "--outdir", "again")
    assert outcome.code == 1
    first, second = outcome.out.splitlines()
    assert first == (
        f"{different}: different, largest difference 100 of 255, again/samples/00000.png "
        f"(torch 1.0, now {torch.__version__})"
    )
    assert second == f"{equal}: equal" and len(list((tmp_path / "again/samples").iterdir())) == 2


def test_images_that_cannot_be_made_again_are_one_line_each(made, rerun, tmp_path):
    image, *others = made("txt2img", "--n_iter", 2)
    record = metadata.read_record(image)
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no image")
    old = change(others[0], {"prompt": "a", "flags": {"seed": 1}, "task": "txt2img"})
    newer = change(others[1], record | {"format": 3})
    damaged = [change(others[2], {name: x for name, x in record.items() if name != "batch"})]
    damaged += [change(others[3], record | {"inputs": []}), change(others[4], record | {"request": [1]})]
    for path, says in [
        ("plain.png", "has no metadata of this toolkit"),
        ("text.png", "has no metadata of this toolkit"),
        ("none.png", "none.png"),
        (old, "its metadata have format 1; expected 2"),
        (newer, "its metadata have format 3; expected 2"),
        *((path, "its metadata are damaged") for path in damaged),
    ]:
        outcome = rerun(path)
        assert outcome.code == 2 and says in outcome.err and str(path) in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1 and outcome.err.startswith("error: ")
    outcome = rerun("plain.png", image)
    assert outcome.code == 2 and outcome.out == f"{image}: equal\n"
    assert outcome.err.splitlines()[-1] == "error: not all images could be made again"


def test_an_image_made_of_an_array_says_so(rerun, tmp_path, monkeypatch, tiny_weights, open_once):
    config, ckpt = (str(tiny_weights("sd2")[i]) for i in (1, 3))
    monkeypatch.chdir(tmp_path)
    pixels = np.zeros((16, 16, 3), np.uint8)
    model = {"config": config, "ckpt": ckpt, "outdir": "o", "no_grid": True}
    done = execute(Img2Img(init_img=pixels, prompt="a", steps=2, n_samples=1, **model))
    record = metadata.read_record(done.files[0])
    assert record["request"]["init_img"] is None and len(record["inputs"]["init_img"]["sha256"]) == 64
    outcome = rerun(done.files[0])
    assert outcome.code == 2 and "--init-img was given as an array, not as a file" in outcome.err


@pytest.mark.parametrize("flags", [("jpg",), ("webp", "--quality", 60), ("webp", "--quality", 100)])
def test_images_of_other_formats_are_made_again_equal(made, rerun, run, tmp_path, tiny_weights, flags):
    made("inpaint", "--format", *flags, "--n_samples", 1, "--prompt", "一只红色的猫 😀")
    (image,) = (tmp_path / "o/samples").iterdir()
    assert image.name == f"00000.{flags[0]}"
    found = metadata.read_record(image)
    assert found["request"]["format"] == flags[0] and found["request"].get("quality") in (None, *flags[2:])
    outcome = rerun(image, "--outdir", "again", "--with", "quality=97", kind="inpaint")
    assert outcome.code == 0 and (tmp_path / "again/samples" / image.name).exists(), outcome.err
    outcome = rerun(image, kind="inpaint")
    assert (outcome.code, outcome.out) == (0, f"{image}: equal\n"), outcome.err


def test_formats_are_numbered_together_and_not_taken_for_each_other(made, tmp_path):
    made("sample", "--n_samples", 1)
    made("sample", "--n_samples", 1, "--format", "jpg", "--skip-existing")
    made("sample", "--n_samples", 1, "--format", "jpg", "--skip-existing")
    made("sample", "--n_samples", 1, "--format", "webp", "--no-metadata")
    names = ["00000.png", "00001.jpg", "00002.webp"]
    assert sorted(file.name for file in (tmp_path / "o/samples").iterdir()) == names
    with Image.open(tmp_path / "o/samples/00002.webp") as image:
        assert not image.getexif() and "xmp" not in image.info


@pytest.mark.parametrize(
    ("task", "flags", "says"),
    [
        ("sample", ("--quality", 80), "--quality 80 is for --format jpg or webp"),
        ("sample", ("--format", "gif"), "--format"),
        ("sample", ("--format", "jpg", "--quality", 0), "--quality"),
        ("inpaint alpha", ("--format", "jpg"), "--format jpg cannot hold the transparency of cutout.png"),
    ],
)
def test_what_a_format_cannot_do_is_refused_before_the_model_is_read(run, tmp_path, task, flags, says):
    outcome = run(f"{task.split()[0]}.py", "--ckpt", "nowhere.ckpt", *QUICK, *TASKS[task][1], *flags)
    assert outcome.code == 2 and says in outcome.err and "nowhere" not in outcome.err
    assert not (tmp_path / "o").exists()


def test_a_grid_is_called_a_grid_and_changes_may_have_the_names_of_flags(made, rerun, tmp_path):
    image = made("controlnet")[0]
    outcome = rerun(image, "--with", "control=canny:photo.png@0.5", "H=32", kind="controlnet")
    assert outcome.code == 0 and "changed as asked" in outcome.out, outcome.err
    record = metadata.read_record(sorted(tmp_path.rglob("*.png"), key=lambda file: file.stat().st_mtime)[-1])
    assert record["request"]["height"] == 32 and record["request"]["controls"][0]["weight"] == 0.5
    about = {key: x for key, x in metadata.read_record(image).items() if key != "batch"}
    grid = change(image, about | {"images": 2})
    outcome = rerun(grid, kind="controlnet")
    assert outcome.code == 2 and "is a grid of 2 images; give the images in samples/" in outcome.err
