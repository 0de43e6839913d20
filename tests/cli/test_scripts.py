"""scripts/txt2img.py and scripts/img2img.py as commands: files, images, metadata, wrong input."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from golden_cases import cases, names
from ldm import devices
from ldm.imaging import metadata
from ldm.jobs import opening

TXT2IMG, IMG2IMG = cases("e2e_txt2img"), cases("e2e_img2img")
QUICK = ("--steps", 2, "--H", 16, "--W", 16, "--n_iter", 1, "--n_samples", 1, "--precision", "full")


def weights(case=TXT2IMG[0]) -> tuple:
    return "--config", case.files["config"], "--ckpt", case.files["checkpoint"]


def golden_flags(case) -> tuple:
    """The reference's own command line of an end-to-end case."""
    c = case.config
    flags = "--prompt", c["prompt"], "--scale", c["scale"], "--seed", case.seed, "--n_samples", c["n_samples"]
    flags += "--ddim_eta", c["eta"], "--n_iter", c.get("n_iter", 1), "--negative-prompt", c["negative_prompt"]
    return *flags, "--precision", "full", *weights(case)


def txt2img_flags(case) -> tuple:
    c = case.config
    sampler = {"ddim": (), "plms": ("--plms",), "dpm": ("--dpm",)}[c["sampler"]]
    return *golden_flags(case), "--steps", c["steps"], "--H", c["H"], "--W", c["W"], *sampler


def img2img_flags(case, tmp_path) -> tuple:
    c = case.config
    Image.fromarray(case.inputs["image_uint8"].numpy()).save(tmp_path / "init.png")
    flags = "--ddim_steps", c["steps"], "--strength", c["strength"]
    return *golden_flags(case), *flags, "--init-img", tmp_path / "init.png"


def read_image(path) -> torch.Tensor:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return torch.from_numpy(np.array(image)).long()


def check_files(case, outdir):
    """Compare every saved image with the reference's, within 1 of 255."""
    files = sorted((outdir / "samples").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(len(case.expected["image_uint8"]))]
    case.check("image_uint8", torch.stack([read_image(file) for file in files]))
    assert sorted(p.name for p in outdir.iterdir()) == [*["grid-0000.png"] * (len(files) > 1), "samples"]


@pytest.mark.few(2)
@pytest.mark.parametrize("case", TXT2IMG, ids=names("e2e_txt2img"))
def test_txt2img_gives_the_reference_image(run, tmp_path, case):
    outcome = run("txt2img.py", *txt2img_flags(case), "--outdir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    check_files(case, tmp_path / "out")


@pytest.mark.parametrize("case", IMG2IMG, ids=names("e2e_img2img"))
def test_img2img_gives_the_reference_image(run, tmp_path, case):
    outcome = run("img2img.py", *img2img_flags(case, tmp_path), "--outdir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    check_files(case, tmp_path / "out")


def test_txt2img_in_its_own_process_without_network_from_another_folder(run_alone, tmp_path):
    case = TXT2IMG[0]
    outcome = run_alone("txt2img.py", *txt2img_flags(case), "--outdir", "out")
    assert outcome.code == 0, outcome.err
    check_files(case, tmp_path / "out")
    assert "out" in outcome.out and "00000.png" in outcome.out and "cpu" in outcome.out
    assert "steps: 100%" in outcome.err, "the progress bar"


@pytest.mark.slow
def test_img2img_in_its_own_process_without_network_from_another_folder(run_alone, tmp_path):
    case = IMG2IMG[0]
    outcome = run_alone("img2img.py", *img2img_flags(case, tmp_path), "--outdir", "out")
    assert outcome.code == 0, outcome.err
    check_files(case, tmp_path / "out")


@pytest.mark.parametrize("script", ["txt2img.py", "img2img.py", "tests/test_watermark.py"])
def test_help_is_quick_and_loads_no_torch(run_alone, script):
    before = _seconds_of_children()
    outcome = run_alone(script, "--help", python_args=("-X", "importtime"))
    assert outcome.code == 0 and "usage" in outcome.out
    imported = {line.rsplit("|", 1)[-1].strip() for line in outcome.err.splitlines() if "|" in line}
    assert "argparse" in imported and not imported & {"torch", "numpy", "PIL", "omegaconf", "open_clip"}
    assert _seconds_of_children() - before < 2      # 0.2 s without -X importtime; importing torch takes 4


def _seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_the_default_command_line_works_with_the_published_layout(run, tmp_path):
    """Three iterations of three samples: nine images, a grid of three columns, a word on each oddity."""
    outcome = run("txt2img.py", *weights(), "--H", 16, "--W", 24, "--steps", 2)
    assert outcome.code == 0, outcome.err
    outdir = tmp_path / "outputs" / "txt2img-samples"
    assert sorted(p.name for p in (outdir / "samples").iterdir()) == [f"{i:05d}.png" for i in range(9)]
    assert read_image(outdir / "samples" / "00000.png").shape == (16, 24, 3)
    assert read_image(outdir / "grid-0000.png").shape == (2 + 3 * 18, 2 + 3 * 26, 3)
    assert "watermark" not in outcome.out, "nobody expects it of a model of such small images"
    assert "10 files" in outcome.out


def test_a_second_run_adds_and_overwrites_nothing(run, tmp_path):
    for _ in range(2):
        assert run("txt2img.py", *weights(), *QUICK, "--outdir", "o").code == 0
    first = (tmp_path / "o" / "samples" / "00001.png").read_bytes()
    (tmp_path / "o" / "samples" / "00000.png").unlink()
    assert run("txt2img.py", *weights(), *QUICK, "--outdir", "o", "--seed", 7).code == 0
    assert sorted(p.name for p in (tmp_path / "o" / "samples").iterdir()) == ["00001.png", "00002.png"]
    assert (tmp_path / "o" / "samples" / "00001.png").read_bytes() == first
    assert not list((tmp_path / "o").glob("grid*")), "one image needs no grid"
    for _ in range(2):
        assert run("txt2img.py", *weights(), *QUICK, "--n_samples", 2, "--outdir", "o").code == 0
    assert {p.name for p in (tmp_path / "o").glob("grid*")} == {"grid-0000.png", "grid-0001.png"}


def test_the_same_command_gives_the_same_bytes(run, tmp_path):
    contents = set()
    for _ in range(2):
        assert run("txt2img.py", *weights(), *QUICK, "--outdir", "o", "--no-grid").code == 0
    contents = {p.read_bytes() for p in (tmp_path / "o" / "samples").iterdir()}
    assert len(contents) == 1 and not list((tmp_path / "o").glob("grid*"))


def test_metadata_says_how_to_make_it_again(run, tmp_path):
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    flags = *weights(), *QUICK, "--outdir", "o", "--from-file", "p.txt", "--n_samples", 2, "--sampler", "dpm"
    assert run("txt2img.py", *flags, "--negative-prompt", "blurry").code == 0
    record = metadata.read_record(tmp_path / "o" / "samples" / "00002.png")
    expected = {"prompt": "three", "seed": 42, "task": "txt2img", "format": 2}
    expected |= {"iteration": 0, "batch": 1, "index_in_batch": 0, "width": 16, "height": 16}
    expected |= {"dtype": "float32", "device": "cpu", "watermark": None}
    assert expected.items() <= record.items()
    options = {"negative_prompt": "blurry", "seed": 42, "sampler": "dpm", "steps": 2, "scale": 9.0}
    options |= {"n_samples": 2, "width": 16, "height": 16, "fixed_code": False}
    assert options.items() <= record["resolved"].items()
    assert record["torch"] == torch.__version__ and len(record["model"]["sha256"]) == 64
    assert record["request"]["from_file"] == "p.txt" and record["request"]["steps"] == 2
    assert not {"seed", "scale", "fixed_code"} & record["request"].keys(), "as it was given"
    with Image.open(tmp_path / "o" / "samples" / "00002.png") as image:
        assert image.text["parameters"].startswith(
            "three\nNegative prompt: blurry\nSteps: 2, Sampler: DPM++ 2M, CFG scale"
        )
    assert metadata.read_record(tmp_path / "o" / "grid-0000.png")["prompt"] == "one\ntwo\nthree"


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("flags", "schedule", "eta"),
    [
        ((), "reference", 0.0),
        (("--plms",), "reference", 0.0),
        (("--sampler", "plms"), "uniform", 0.0),
        (("--sampler", "euler_a"), "linspace", 1.0),
        (("--sampler", "unipc"), "karras", 0.0),
        (("--sampler", "unipc", "--schedule", "quad"), "quad", 0.0),
        (("--ddim_eta", 0.5), "reference", 0.5),
        (("--sampler", "euler_a", "--eta", 0), "linspace", 0.0),
    ],
)
def test_metadata_names_the_times_and_the_noise_that_were_taken(run, tmp_path, flags, schedule, eta):
    assert run("txt2img.py", *weights(), *QUICK, "--outdir", "o", *flags).code == 0
    record = metadata.read_record(tmp_path / "o" / "samples" / "00000.png")
    assert (record["resolved"]["schedule"], record["resolved"]["eta"]) == (schedule, eta)


def test_no_metadata_means_none(run, tmp_path):
    assert run("txt2img.py", *weights(), *QUICK, "--outdir", "o", "--no-metadata").code == 0
    with Image.open(tmp_path / "o" / "samples" / "00000.png") as image:
        assert image.info == {}


def test_large_images_carry_the_mark_and_the_script_reads_it(run, tmp_path):
    size = ("--H", 256, "--W", 272, "--steps", 1, "--n_samples", 2)
    assert run("txt2img.py", *weights(), *QUICK, *size, "--outdir", "o").code == 0
    for name in ("samples/00000.png", "grid-0000.png"):
        for args in ((tmp_path / "o" / name,), ("--img_path", tmp_path / "o" / name)):
            outcome = run("tests/test_watermark.py", *args)
            assert (outcome.code, outcome.out) == (0, "SDV2\n")
    assert metadata.read_record(tmp_path / "o" / "samples" / "00000.png")["watermark"] == "SDV2"
    assert run("txt2img.py", *weights(), *QUICK, *size, "--outdir", "off", "--watermark", "off").code == 0
    assert run("tests/test_watermark.py", tmp_path / "off" / "samples" / "00000.png").out == "null\n"


def test_img2img_keeps_an_odd_size_and_undoes_exif(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (37, 29), (200, 30, 30, 128)).save(tmp_path / "odd.png", exif=exif)
    flags = (
        "--init-img",
        "odd.png",
        "--ddim_steps",
        4,
        "--n_samples",
        1,
        "--precision",
        "full",
        "--outdir",
        "o",
    )
    outcome = run("img2img.py", *weights(), *flags, "--fixed_code", "--sampler", "dpm")
    assert outcome.code == 0, outcome.err
    assert read_image(tmp_path / "o" / "samples" / "00000.png").shape == (37, 29, 3)
    record = metadata.read_record(tmp_path / "o" / "samples" / "00000.png")
    assert record["resolved"]["strength"] == 0.8 and record["inputs"]["init_img"]["file"] == "odd.png"


def test_published_intel_flags_work_and_explain_themselves(run, tmp_path):
    flags = *weights(), *QUICK, "--device", "cpu", "--torchscript", "--ipex", "--bf16", "--outdir", "o"
    outcome = run("txt2img.py", *flags)
    assert outcome.code == 0, outcome.err
    assert "--torchscript has no effect" in outcome.out and "--ipex only" in outcome.out
    assert metadata.read_record(tmp_path / "o" / "samples" / "00000.png")["dtype"] == "bfloat16"


@pytest.mark.parametrize("flag", ["--bf16", "--dtype=bfloat16", "--dtype=fp16"])
def test_what_the_cpu_would_emulate_is_computed_in_float32(run, tmp_path, monkeypatch, flag):
    monkeypatch.setattr(devices, "is_fast", lambda dtype, device: dtype == torch.float32)
    outcome = run("txt2img.py", *weights(), *QUICK[:-2], "--device", "cpu", flag, "--outdir", "o")
    assert outcome.code == 0 and outcome.err.count("computing in float32") == 1
    assert metadata.read_record(tmp_path / "o" / "samples" / "00000.png")["dtype"] == "float32"


def test_quiet_says_nothing(run):
    outcome = run("txt2img.py", *weights(), *QUICK, "--quiet", "--watermark", "off", "--outdir", "o")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_without_weights_the_demo_model_is_used_at_its_own_size_and_said_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "demo_files", lambda name: tuple(map(Path, weights()[1::2])))
    outcome = run("txt2img.py", "--steps", 2, "--n_iter", 1, "--n_samples", 1, "--outdir", "o")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("no --ckpt given: using the small demo model") == 1
    assert read_image(tmp_path / "o" / "samples" / "00000.png").shape == (64, 64, 3)


def test_without_weights_and_without_demo_model_it_says_what_to_give(run, monkeypatch):
    monkeypatch.setattr(opening, "DEMO", "configs/nowhere")
    outcome = run("txt2img.py")
    assert outcome.code == 2 and "--ckpt" in outcome.err and outcome.err.count("\n") == 1


def test_ctrl_c_keeps_what_was_made(run, tmp_path, monkeypatch):
    from ldm.tasks import generate as door

    original = door.generate

    def interrupted(*args, **kwargs):
        yield next(original(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(door, "generate", interrupted)
    outcome = run("txt2img.py", *weights(), *QUICK, "--quiet", "--n_iter", 5, "--outdir", "o")
    assert outcome.code == 130
    assert "samples/00000.png" in outcome.err and outcome.err.endswith("interrupted\n")
    assert [p.name for p in (tmp_path / "o" / "samples").iterdir()] == ["00000.png"]


GIVEN = ("--config", "CONFIG", "--ckpt", "CKPT")
WRONG = {
    "prompt without a text": ("txt2img.py", "--prompt"),
    "height 0": ("txt2img.py", "--H", 0),
    "height in letters": ("txt2img.py", "--H", "tall"),
    "width too large": ("txt2img.py", "--W", 99999),
    "no steps": ("txt2img.py", "--steps", 0),
    "too many steps": ("txt2img.py", "--steps", 1001, *GIVEN),
    "scale nan": ("txt2img.py", "--scale", "nan"),
    "eta below 0": ("txt2img.py", "--ddim_eta", -1),
    "eta with plms": ("txt2img.py", "--plms", "--ddim_eta", 0.5),
    "eta with dpm": ("txt2img.py", "--dpm", "--ddim_eta", 0.5),
    "negative seed": ("txt2img.py", "--seed", -1),
    "seed too large": ("txt2img.py", "--seed", 2**32),
    "fractional seed": ("txt2img.py", "--seed", 1.5),
    "empty seed": ("txt2img.py", "--seed", ""),
    "no samples": ("txt2img.py", "--n_samples", 0),
    "no iterations": ("txt2img.py", "--n_iter", 0),
    "rows below 0": ("txt2img.py", "--n_rows", -1),
    "missing prompt file": ("txt2img.py", "--from-file", "nowhere.txt"),
    "prompt file is a folder": ("txt2img.py", "--from-file", "."),
    "empty prompt file": ("txt2img.py", "--from-file", "EMPTY"),
    "missing weights": ("txt2img.py", "--ckpt", "nowhere.ckpt"),
    "weights are a folder": ("txt2img.py", "--ckpt", "."),
    "weights are text": ("txt2img.py", "--config", "CONFIG", "--ckpt", "TEXT"),
    "missing config": ("txt2img.py", "--config", "nowhere.yaml", "--ckpt", "CKPT"),
    "config without weights": ("txt2img.py", "--config", "CONFIG"),
    "weights of another model": ("txt2img.py", "--ckpt", "CKPT"),
    "unknown device": ("txt2img.py", "--device", "tpu", *GIVEN),
    "unknown sampler": ("txt2img.py", "--sampler", "eulr"),
    "two samplers": ("txt2img.py", "--plms", "--sampler", "dpm"),
    "two dtypes": ("txt2img.py", "--bf16", "--dtype", "float16", *GIVEN),
    "full in half": ("txt2img.py", "--precision", "full", "--dtype", "float16", *GIVEN),
    "other channels": ("txt2img.py", "--C", 3, *GIVEN),
    "unknown flag": ("txt2img.py", "--stepz", 3),
    "outdir is a file": ("txt2img.py", "--outdir", "TEXT"),
    "outdir below a file": ("txt2img.py", "--outdir", "TEXT/out"),
    "outdir without a name": ("txt2img.py", "--outdir"),
    "no init image": ("img2img.py",),
    "missing init image": ("img2img.py", "--init-img", "nowhere.png"),
    "init image is text": ("img2img.py", "--init-img", "TEXT"),
    "strength above 1": ("img2img.py", "--init-img", "IMAGE", "--strength", 1.01),
    "strength nan": ("img2img.py", "--init-img", "IMAGE", "--strength", "nan"),
    "no image to read": ("tests/test_watermark.py",),
    "two images to read": ("tests/test_watermark.py", "IMAGE", "--img_path", "IMAGE"),
}


@pytest.mark.parametrize("args", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line_and_nothing_is_written(run, tmp_path, args):
    (tmp_path / "text.bin").write_text("not what was expected")
    (tmp_path / "empty.txt").touch()
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    files = {"CONFIG": weights()[1], "CKPT": weights()[3], "TEXT": tmp_path / "text.bin"}
    files |= {
        "TEXT/out": tmp_path / "text.bin" / "out",
        "EMPTY": "empty.txt",
        "IMAGE": tmp_path / "image.png",
    }
    before = sorted(tmp_path.rglob("*"))
    outcome = run(*(files.get(arg, arg) for arg in args))
    assert outcome.code == 2
    assert (
        outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and "Traceback" not in outcome.err
    )
    assert sorted(tmp_path.rglob("*")) == before
