"""scripts/controlnet.py and the options of controls in other scripts: their files, sizes and wrong input."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from script_files import REPOSITORY
from tiny_models import tiny_config, tiny_model

from golden_cases import GOLDEN, cases
from ldm.checkpoint.layouts.controlnet import to_diffusers
from ldm.imaging import metadata
from ldm.loading.controls import load_control
from ldm.models.controlnet import ControlNet

QUICK = ("--steps", 2, "--precision", "full", "--watermark", "off", "--no-grid", "--outdir", "o")
PROMPT = ("--prompt", "a cat", "--n_samples", 1, "--n_iter", 1)


def complete_cases(*kinds):
    """Return the golden cases of kinds whose weights are here: SD_GOLDEN names a folder that has them."""
    found = []
    for kind in kinds:
        try:
            found += cases(kind)
        except LookupError:
            continue
    return [case for case in found if (GOLDEN / case.entry["files"]["checkpoint"]).exists()]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Write tiny models, and ControlNets for one of them in every layout; return the folder."""
    folder = tmp_path_factory.mktemp("weights")
    for task in ("sd1", "sd2", "inpaint"):
        save_file(tiny_model(tiny_config(task, folder)).state_dict(), folder / f"{task}.safetensors")
    whole = tiny_model(tiny_config("controlnet", folder)).state_dict()
    base = tiny_model(tiny_config("sd1", folder)).state_dict()
    whole |= {name: x for name, x in base.items() if name in whole}
    save_file(whole, folder / "whole.safetensors")
    control = {name: x for name, x in whole.items() if name.startswith("control_model.")}
    torch.save(control, folder / "control_v11p_sd15_canny.pth")
    bare = {name.removeprefix("control_model."): x for name, x in control.items()}
    save_file(bare, folder / "extracted.safetensors")
    halves = {name: x.half() for name, x in control.items()}
    save_file(halves, folder / "half.safetensors")
    unet = {name.removeprefix("model.diffusion_"): x for name, x in base.items()}
    as_difference = {"difference": torch.ones(())}
    for name, x in control.items():
        own = unet.get(name.removeprefix("control_"))
        if own is None or own.shape != x.shape:
            as_difference[name] = x
        elif not torch.equal(own, x):
            as_difference[name] = x - own
    save_file(as_difference, folder / "diff_control_canny.safetensors")
    (folder / "diffusers").mkdir()
    save_file(to_diffusers(bare), folder / "diffusers" / "diffusion_pytorch_model.safetensors")
    (folder / "diffusers" / "config.json").write_text(json.dumps({"_class_name": "ControlNetModel"}))
    save_file(to_diffusers(bare), folder / "diffusers_alone.safetensors")
    return folder


LAYOUTS = (
    "control_v11p_sd15_canny.pth", "extracted.safetensors", "whole.safetensors",
    "diff_control_canny.safetensors", "diffusers", "diffusers_alone.safetensors",
)  # fmt: skip


@pytest.fixture
def photo(tmp_path):
    """Put a photograph of odd proportions into the folder."""
    y, x = np.mgrid[:100, :70]
    pixels = np.dstack([np.where((x - 35) ** 2 + (y - 50) ** 2 < 400, 230, 20), 2 * x, 2 * y])
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def made(folder, number=0):
    with Image.open(folder / "o" / "samples" / f"{number:05d}.png") as image:
        return np.array(image).astype(int)


def base_of(files, task="sd1"):
    return "--ckpt", files / f"{task}.safetensors", "--config", files / f"{task}.yaml"


@pytest.mark.parametrize(
    "case", complete_cases("e2e_control", "e2e_control_guess"), ids=lambda case: case.name
)
def test_it_gives_the_image_of_the_reference_page(run, tmp_path, case):
    c = case.config
    Image.fromarray(case.inputs["hint_uint8"].numpy()).save(tmp_path / "map.png")
    outcome = run(
        "controlnet.py", "--config", case.files["config"], "--ckpt", case.files["checkpoint"], *QUICK,
        "--control", f"map:map.png@{c['strength']}", "--prompt", c["full_prompt"], "--seed", c["seed"],
        "--negative-prompt", c["negative_prompt"], "--steps", c["steps"], "--scale", c["scale"],
        "--n_samples", c["num_samples"], "--ddim_eta", c["eta"], *["--guess"] * c["guess_mode"],
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    case.check("image_uint8", np.stack([made(tmp_path, i) for i in range(c["num_samples"])]))


@pytest.mark.few(3)
@pytest.mark.parametrize("layout", [*LAYOUTS, "half.safetensors"])
def test_every_layout_of_one_controlnet_is_the_same_network(files, layout):
    model = tiny_model(files / "sd1.yaml")
    model.load_state_dict(load_file(files / "sd1.safetensors"))
    found = load_control(files / layout, model).network.state_dict()
    expected = load_file(files / "extracted.safetensors")
    assert found.keys() == expected.keys()
    atol = 1e-2 if layout.startswith("half") else 1e-6      # a difference is rounded
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, atol=atol, rtol=0, msg=name)


def test_the_map_and_the_result_have_the_proportions_of_the_photograph(run, tmp_path, files, photo):
    """The reference's rule: the shorter side as the model was trained, both multiples of 64 (here 32)."""
    outcome = run(
        "controlnet.py", *base_of(files), *QUICK, *PROMPT, "--control", "canny:photo.png", "--save-control",
        "--control-ckpt", files / "extracted.safetensors",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert made(tmp_path).shape == (96, 64, 3)
    with Image.open(tmp_path / "o" / "controls" / "00000.png") as image:
        edges = np.array(image)
    assert edges.shape == (96, 64, 3) and set(np.unique(edges)) == {0, 255}


def test_a_record_holds_all_of_it_and_reruns_equal(run, tmp_path, files, photo):
    outcome = run(
        "controlnet.py", *base_of(files), *QUICK, *PROMPT, "--control", "canny,low=50:photo.png@0.8[0-0.6]",
        "map:photo.png@0.3", "--control-ckpt", files / "extracted.safetensors", "--control-mode", "prompt",
        "--added-prompt", "best quality",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    image = tmp_path / "o" / "samples" / "00000.png"
    record = metadata.read_record(image)
    assert record["prompt"] == "a cat, best quality"
    assert record["request"]["controls"] == [
        {"kind": "canny", "file": "photo.png", "weight": 0.8, "end": 0.6, "settings": {"low": 50}},
        {"kind": "map", "file": "photo.png", "weight": 0.3},
    ]
    assert record["model"]["controls"] == ["extracted.safetensors"] * 2
    assert len(record["inputs"]["controls"]) == 2
    outcome = run("rerun.py", image, "--files", files)
    assert outcome.code == 0 and "equal" in outcome.out, outcome.err
    Image.new("RGB", (70, 100)).save(tmp_path / "photo.png")
    outcome = run("rerun.py", image, "--files", files)
    assert outcome.code == 2 and "photo.png has changed" in outcome.err


def test_an_input_image_without_its_masked_part_is_followed(run, tmp_path, files, photo):
    mask = np.zeros((100, 70), np.uint8)
    mask[:50] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    outcome = run(
        "inpaint.py", *base_of(files), *QUICK, *PROMPT[:4], "--init-img", "photo.png", "--mask", "mask.png",
        "--control", "inpaint", "--control-ckpt", files / "extracted.safetensors", "--save-control",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "o" / "controls" / "00000.png") as image:
        assert np.array_equal(np.array(image)[..., 3], 255 - mask)


def test_finished_latents_are_decoded_without_the_picture(run, tmp_path, files, photo):
    outcome = run(
        "controlnet.py", *base_of(files), *QUICK, *PROMPT, "--control", "canny:photo.png",
        "--control-ckpt", files / "extracted.safetensors", "--save-latents",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    photo.unlink()
    outcome = run("controlnet.py", "--latents", "o/samples/00000.latents.safetensors", "--outdir", "o")
    assert outcome.code == 0 and np.array_equal(made(tmp_path, 1), made(tmp_path)), outcome.err


@pytest.mark.slow
def test_a_run_is_resumed_in_another_folder(run, tmp_path, files, photo, stop_at, monkeypatch):
    np.save(tmp_path / "depth.npy", np.arange(7000.0).reshape(100, 70))
    command = (
        "controlnet.py", *base_of(files), *QUICK, *PROMPT, "--control", "depth,depth=depth.npy:photo.png",
        "--control-ckpt", files / "extracted.safetensors",
    )  # fmt: skip
    assert run(*command).code == 0
    stop_at(1)
    assert run(*command).code == 75
    stop_at(None)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    stopped = tmp_path / "o" / "interrupted-00000.safetensors"
    outcome = run("controlnet.py", "--latents", stopped, "--outdir", tmp_path / "o")
    assert outcome.code == 0 and np.array_equal(made(tmp_path, 1), made(tmp_path)), outcome.err
    image = tmp_path / "o" / "samples" / "00001.png"
    outcome = run("rerun.py", image, "--files", files, tmp_path)
    assert outcome.code == 0 and "equal" in outcome.out, outcome.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--control", "cany:photo.png"), "did you mean 'canny'"),
        (("--control", "canny:none.png"), "none.png"),
        (("--control", "canny:photo.png@high"), "weight: got 'high', expected a number from 0"),
        (("--control", "canny:photo.png[0.8-0.2]"), "expected START < END"),
        (("--control", "canny:photo.png[0-2]"), "end: got '2', expected a number from 0"),
        (("--control", "canny:dot.png"), "dot.png is 1x1; expected at least 8 pixels a side"),
        (("--control", "canny,lwo=3:photo.png"), "low"),
        (("--control", "canny"), "--control canny:FILE"),
        ((), "--control KIND:FILE"),
        (("--control", "canny:photo.png", "--control-ckpt", "{sd2}"), "expected a ControlNet"),
        (("--control", "canny:photo.png", "--control-ckpt", "missing.pth"), "missing.pth"),
        (("--control", "canny:photo.png"), "contains no ControlNet"),
        (("--control", "mlsd:photo.png", "--control-ckpt", "{control}"), "M-LSD needs its weights"),
        (
            ("--control", "hed:photo.png", "--control-ckpt", "{control}", "--annotator-weights", "{sd2}"),
            "expected HED",
        ),
    ],
)
def test_wrong_input_is_one_line_before_the_model_is_loaded(run, tmp_path, files, photo, flags, words):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    weights = {"sd2": files / "sd2.safetensors", "control": files / "extracted.safetensors"}
    flags = [flag.format(**weights) for flag in flags]
    outcome = run("controlnet.py", *base_of(files), *QUICK, *PROMPT, *flags)
    assert outcome.code == 2 and words in outcome.err, outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and not (tmp_path / "o").exists()
    assert "loaded sd1" not in outcome.err


def test_another_family_is_named_and_a_control_is_no_checkpoint(run, files, photo):
    control = files / "extracted.safetensors"
    flags = ("--control", "canny:photo.png", "--control-ckpt", control)
    outcome = run("controlnet.py", *base_of(files, "sd2"), *QUICK, *PROMPT, *flags)
    assert outcome.code == 2 and "the ControlNet does not fit" in outcome.err, outcome.err
    outcome = run("txt2img.py", "--ckpt", control, *QUICK, *PROMPT)
    assert outcome.code == 2 and "--ckpt takes a whole model; give this file to --control-ckpt" in outcome.err


def test_another_family_is_named_from_the_headers_without_torch(tmp_path):
    """Files with the shapes that tell the families of the reference models."""
    files = ("base", "model.diffusion_model.", 768), ("sd21_canny", "control_model.", 1024)
    for name, prefix, width in files:
        key = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
        tensors = {"input_blocks.0.0.weight": torch.ones(320, 4, 3, 3), key: torch.ones(320, width)}
        if width == 1024:
            tensors["zero_convs.0.0.weight"] = torch.ones(320, 320, 1, 1)
        save_file({prefix + each: x for each, x in tensors.items()}, tmp_path / f"{name}.safetensors")
    code = (
        "import sys\n"
        "from ldm.jobs.controls import check_families\n"
        "from ldm.requests import Controlnet\n"
        "try:\n"
        "    check_families(Controlnet(ckpt='base.safetensors', controls=['map:x.png'],\n"
        "                              control_ckpt=['sd21_canny.safetensors']))\n"
        "except Exception as error:\n"
        "    print(error, 'torch' in sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert told.stdout.strip().endswith("False"), told
    assert "sd21_canny.safetensors is a ControlNet for SD 2.x alone, and base.safetensors is" in told.stdout


def test_a_folder_is_searched_by_kind(run, tmp_path, files, photo):
    folder = tmp_path / "controls"
    folder.mkdir()
    for name in ("control_v11p_sd15_canny.safetensors", "control_v11f1e_sd15_tile.safetensors"):
        (folder / name).symlink_to(files / "extracted.safetensors")
    outcome = run("controlnet.py", *base_of(files), *QUICK, *PROMPT, "--control", "canny:photo.png",
                  "--control-ckpt", folder)  # fmt: skip
    assert outcome.code == 0, outcome.err
    record = metadata.read_record(tmp_path / "o" / "samples" / "00000.png")
    assert record["model"]["controls"][0] == "control_v11p_sd15_canny.safetensors"
    outcome = run("controlnet.py", *base_of(files), *QUICK, *PROMPT, "--control", "seg:photo.png",
                  "--control-ckpt", folder)  # fmt: skip
    assert outcome.code == 2 and "no file is named for seg" in outcome.err


def test_an_untrained_controlnet_changes_nothing():
    """Its last convolutions are zero."""
    unet = {
        "in_channels": 4, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [1],
        "channel_mult": [1, 2], "num_heads": 2, "use_spatial_transformer": True, "context_dim": 8,
    }  # fmt: skip
    network = ControlNet(3, **unet)
    x, hint = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 64, 64)
    residuals = network(x, hint, torch.tensor([10]), torch.randn(1, 3, 8))
    assert all(not residual.any() for residual in residuals)


def test_images_that_exist_are_not_made_again(run, tmp_path, files, photo):
    flags = (*base_of(files), *QUICK, *PROMPT, "--control", "canny:photo.png", "--skip-existing")
    flags += ("--control-ckpt", files / "extracted.safetensors")
    assert run("controlnet.py", *flags).code == 0
    outcome = run("controlnet.py", *flags)
    assert outcome.code == 0 and "1 image of this command had been saved before" in outcome.err + outcome.out
    assert run("controlnet.py", *flags, "--guess").code == 0
    assert len(list((tmp_path / "o" / "samples").iterdir())) == 2
