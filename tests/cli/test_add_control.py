"""scripts/add_control.py: a model and an untrained ControlNet in one file, which training takes."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_model

import ldm
from ldm.diffusion.cond import Cond
from ldm.loading.controls import load_control
from ldm.models.controlnet import ControlLDM


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Write tiny models of both families and of another task, with their YAML; return the folder."""
    folder = tmp_path_factory.mktemp("models")
    for task in ("sd1", "sd2", "inpaint"):
        tensors = {k: x.contiguous() for k, x in tiny_model(tiny_config(task, folder)).state_dict().items()}
        save_file(tensors, folder / f"{task}.safetensors")
    return folder


@pytest.mark.parametrize("task", ["sd1", "sd2"])
@pytest.mark.parametrize("name", ["ini.ckpt", "ini.safetensors"])
def test_the_file_is_the_flat_dict_of_the_reference(run, models, tmp_path, task, name):
    source = models / f"{task}.safetensors"
    outcome = run("add_control.py", source, name)  # a bare name is in this folder
    assert outcome.code == 0, outcome.err
    file = tmp_path / name
    made = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    base = load_file(source)
    assert all(torch.equal(made[key], x) for key, x in base.items())
    new = {line.removeprefix("new: ") for line in outcome.out.splitlines() if line.startswith("new: ")}
    for key, x in made.items():
        if key.startswith("control_model.") and key not in new:
            assert torch.equal(x, base[key.replace("control_model.", "model.diffusion_model.")]), key
    assert {"logvar", "control_model.zero_convs.0.0.weight", "control_model.input_hint_block.0.weight"} <= new
    parts = {key.split(".")[1] for key in new - {"logvar"}}
    assert parts == {"zero_convs", "input_hint_block", "middle_block_out"}
    assert {"betas", "alphas_cumprod", "posterior_mean_coef2"} <= made.keys()
    zeros = "zero_convs.1.0.bias", "middle_block_out.0.weight", "input_hint_block.14.weight"
    assert not any(made[f"control_model.{key}"].any() for key in zeros)


def test_the_file_loads_and_computes_what_the_model_computes(run, models, tmp_path):
    assert run("add_control.py", models / "sd1.safetensors", "ini.safetensors").code == 0
    config = tiny_config("controlnet", tmp_path)
    model = ldm.load_model(config, tmp_path / "ini.safetensors", "cpu", "float32")
    assert isinstance(model, ControlLDM)
    torch.manual_seed(0)
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 12, 32)
    with_hint = model.conditioning(context, torch.rand(1, 3, 64, 64))
    assert torch.equal(model.apply_model(x, t, with_hint), model.apply_model(x, t, Cond(context)))


def test_the_control_net_alone_loads(run, models, tmp_path):
    outcome = run("add_control.py", models / "sd1.safetensors", "alone.pth", "--control-only", "--seed", 3)
    assert outcome.code == 0, outcome.err
    made = torch.load(tmp_path / "alone.pth", weights_only=True)
    assert all(key.startswith("control_model.") for key in made) and "logvar" not in outcome.out
    base = tiny_model(tiny_config("sd1", tmp_path))
    network = load_control(tmp_path / "alone.pth", base).network
    assert not network.zero_convs[0][0].weight.any() and network.input_hint_block[0].weight.any()


def test_wrong_paths_are_one_line_and_write_nothing(run, models, tmp_path):
    source = models / "sd1.safetensors"
    (tmp_path / "there.ckpt").write_bytes(b"mine")
    for args, said in (
        ((tmp_path / "none.ckpt", "o.ckpt"), "none.ckpt"),
        ((source, "there.ckpt"), "there.ckpt already exists"),
        ((source, "no/folder.ckpt"), "there is no folder no"),
        ((source, "o.zip"), "expected a name that ends in"),
        ((models / "inpaint.safetensors", "o.ckpt"), "inpaint"),
    ):
        outcome = run("add_control.py", *args)
        assert outcome.code == 2 and said in outcome.err, outcome.err
        assert len(outcome.err.strip().splitlines()) == 1
    assert (tmp_path / "there.ckpt").read_bytes() == b"mine" and len(list(tmp_path.iterdir())) == 1
