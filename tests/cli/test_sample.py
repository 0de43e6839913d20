"""scripts/sample.py on the demo, and on what scripts/train.py makes by the configuration that ships."""

import numpy as np
import pytest
from PIL import Image
from script_files import run_script

from ldm.config import load_config
from ldm.imaging import metadata
from ldm.training.fit import FOLDER_VARIABLE

SMALL = (
    "model.params.image_size=16",
    "model.params.unet_config.params.model_channels=32",
    "model.params.unet_config.params.num_res_blocks=1",
    "model.params.first_stage_config.params.ddconfig.ch=8",
    "model.params.first_stage_config.params.ddconfig.num_groups=4",
    "model.params.first_stage_config.params.ddconfig.num_res_blocks=1",
    "data={target: demo.discs.Discs, params: {size: 128}}",
    "val_data={target: demo.discs.Discs, params: {size: 128}}",
    "train.max_steps=2", "train.batch_size=2", "train.accumulate=1", "train.precision=float32",
    "diffusion.sample_count=2", "diffusion.sample_steps=2", "diffusion.cache_latents=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of configs/training/unconditional.yaml, of two steps of a smaller model."""
    from ldm.training.run_folder import MetricsLog

    folder = tmp_path_factory.mktemp("training") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_VARIABLE, "")
        patch.setattr(MetricsLog, "draw", lambda self, path: None)  # it takes longer than the training
        config = "--config", "configs/training/unconditional.yaml"
        assert run_script("train.py", *config, "--run", folder, *SMALL) == 0
    return folder


@pytest.mark.slow
def test_train_then_sample(run, tmp_path, trained):
    weights = "--ckpt", trained / "model.safetensors"
    heading = (trained / "model.yaml").read_text().splitlines()[0]
    assert "scripts/sample.py" in heading
    flags = "--config", trained / "model.yaml", *weights, "--steps", 2, "--n_samples", 2, "--seed", 7
    outcome = run("sample.py", *flags, "--save-latents")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "outputs" / "sample-samples"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert names == {"grid-0000.png", "samples/00000.png", "samples/00001.png"}
    with Image.open(folder / "samples" / "00000.png") as image:
        assert image.size == (128, 128)
        pixels = np.asarray(image)
    record = metadata.read_record(folder / "samples" / "00000.png")
    assert (record["task"], record["prompt"], record["resolved"]["scale"]) == ("sample", "", 1.0)
    latents = folder / "samples" / "00000.latents.safetensors"
    outcome = run("sample.py", "--latents", latents, "--outdir", "again")
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "again" / "samples" / "00000.png") as image:
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.slow
def test_the_configuration_next_to_the_model_is_used_and_other_tasks_are_refused(run, tmp_path, trained):
    quick = "--n_samples", 1, "--n_iter", 1, "--steps", 1
    outcome = run("sample.py", "--ckpt", trained / "model.safetensors", *quick, "--outdir", tmp_path / "o")
    assert outcome.code == 0 and "config: model.yaml" in outcome.out
    outcome = run("txt2img.py", "--ckpt", trained / "model.safetensors")
    assert outcome.code == 2 and "use it with scripts/sample.py" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_both_shipped_files_are_of_one_model():
    shipped, training = (
        load_config(f"configs/{name}/unconditional.yaml").model for name in ("latent-diffusion", "training")
    )
    assert shipped.params.pop("scale_factor") == 0.18215
    assert shipped == training


def test_the_demo_model_by_the_empty_prompt(run, tmp_path):
    outcome = run(
        "sample.py", "--steps", 2, "--n_samples", 2, "--H", 67, "--W", 131, "--no-grid", "--outdir", "o"
    )
    assert outcome.code == 0, outcome.err
    for name in ("00000.png", "00001.png"):
        with Image.open(tmp_path / "o" / "samples" / name) as image:
            assert image.size == (131, 67)


@pytest.mark.slow
def test_a_stopped_run_goes_on(run, tmp_path, stop_at):
    flags = "--steps", 3, "--sampler", "euler_a", "--n_samples", 2, "--n_iter", 2, "--no-grid"
    flags += "--H", 64, "--W", 64
    assert run("sample.py", *flags, "--outdir", "whole").code == 0
    stop_at(5)
    outcome = run("sample.py", *flags, "--outdir", "o")
    assert outcome.code == 75, outcome.err
    stop_at(None)
    outcome = run("sample.py", "--latents", "o/interrupted-00000.safetensors")
    assert outcome.code == 0, outcome.err
    whole, ours = (sorted((tmp_path / name / "samples").glob("*.png")) for name in ("whole", "o"))
    assert [path.read_bytes() for path in whole] == [path.read_bytes() for path in ours] and len(whole) == 4


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--prompt", "x"), "has no --prompt"),
        (("--scale", 2), "guidance scale 2 changes nothing"),
        (("--n_samples", 0), "expected a whole number from 1 up"),
        (("--config", "x.yaml"), "requires --ckpt FILE"),
        (("--ckpt", "nowhere.ckpt"), "nowhere.ckpt"),
    ],
)
def test_wrong_input_is_one_line(run, tmp_path, flags, says):
    outcome = run("sample.py", *flags)
    assert outcome.code == 2 and says in outcome.err and outcome.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
