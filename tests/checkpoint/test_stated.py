"""What the JSON of a diffusers folder says of a model is compared with the configuration."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_model

from ldm.checkpoint.conversion import ConvertOptions, convert
from ldm.checkpoint.opened import open_weights
from ldm.config import read_config
from ldm.diffusion.schedule import make_betas
from ldm.errors import WrongModelError
from ldm.loading import load_model, load_part
from ldm.loading.stated import check_folder

BETAS = make_betas("linear", 1000, 0.00085, 0.012)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the configuration and the folder of a tiny model."""
    place = tmp_path_factory.mktemp("whole")
    config = tiny_config("sd1", place)
    save_file(tiny_model(config).state_dict(), place / "tiny.safetensors")
    convert(place / "tiny.safetensors", place / "folder", ConvertOptions(config=str(config)))
    return config, place / "folder"


def changed(folder, tmp_path, part, **values):
    """Copy the folder with other values in the JSON of a part; None removes a key."""
    shutil.copytree(folder, tmp_path / "folder")
    file = tmp_path / "folder" / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
    return tmp_path / "folder"


@pytest.mark.few(8)
@pytest.mark.parametrize(
    "part, values, expected",
    [
        ("scheduler", {"beta_end": 0.02, "beta_schedule": "linear"}, "schedule linear, beta_end 0.02, and"),
        ("scheduler", {"beta_end": 0.02}, "tiny 0.012"),
        ("scheduler", {"beta_start": 0.0001}, "beta_start 0.0001, and tiny 0.00085"),
        ("scheduler", {"num_train_timesteps": 500}, "num_train_timesteps 500, and tiny 1000"),
        ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}, "cap_v2, and tiny scaled_linear"),
        ("scheduler", {"trained_betas": (BETAS * 2).tolist()}, "betas 1000 from 0.0017 to 0.024, and"),
        ("scheduler", {"trained_betas": [0.1, 0.2]}, "betas 2 from 0.1 to 0.2, and tiny 1000"),
        ("scheduler", {"prediction_type": "flow_prediction"}, "type flow_prediction, and tiny eps"),
        ("vae", {"scaling_factor": 0.13025}, "scaling_factor 0.13025, and tiny 0.18215"),
        ("vae", {"shift_factor": 0.1159}, "shift_factor 0.1159, and tiny None"),
        ("vae", {"latent_channels": 16}, "latent_channels 16, and tiny 4"),
        ("vae", {"latents_mean": [0.5] * 4}, "latents_mean [0.5, 0.5, 0.5, 0.5], and tiny None"),
        ("unet", {"attention_head_dim": 8}, "attention_head_dim 8, and tiny 4"),
        ("unet", {"flip_sin_to_cos": False}, "flip_sin_to_cos False, and tiny True"),
        ("unet", {"_class_name": "UNet3DConditionModel"}, "UNet3DConditionModel, and tiny UNet2D"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type timestep, and tiny None"),
        ("text_encoder", {"num_hidden_layers": 30}, "num_hidden_layers 30, and tiny 2"),
        ("text_encoder", {"num_attention_heads": 4}, "num_attention_heads 4, and tiny 2"),
        ("scheduler", {"beta_end": "x" * 5000}, "..."),
    ],
)
def test_a_contradiction_names_both(part, values, expected, whole, tmp_path):
    config, folder = whole
    folder = changed(folder, tmp_path, part, **values)
    expected = expected.replace("tiny", str(config)).removesuffix("...")
    with pytest.raises(WrongModelError) as caught:
        check(folder, config)
    message = str(caught.value)
    assert expected in message and str(folder / part) in message and len(message) < 900


def check(folder, config):
    check_folder(open_weights(folder), read_config(config)["model"]["params"], str(config))


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_a_pipeline_of_another_family_is_refused(name, whole, tmp_path):
    config, folder = whole
    shutil.copytree(folder, tmp_path / "folder")
    file = tmp_path / "folder" / "model_index.json"
    index = json.loads(file.read_text())
    for known in ("StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline", index["_class_name"]):
        file.write_text(json.dumps(index | {"_class_name": known}))
        check(tmp_path / "folder", config)
    file.write_text(json.dumps(index | {"_class_name": name}))
    with pytest.raises(WrongModelError, match=rf"index\.json says {name}, and .* Diffusion 1\.x or 2\.x"):
        check(tmp_path / "folder", config)


def test_loading_and_converting_check(whole, tmp_path):
    config, folder = whole
    folder = changed(folder, tmp_path, "scheduler", beta_end=0.02)
    with pytest.raises(WrongModelError, match="beta_end 0.02, and .* 0.012; give a --config that says so"):
        load_model(config, folder, device="cpu")
    with pytest.raises(WrongModelError, match="beta_end 0.02"):
        convert(folder, tmp_path / "out.safetensors", ConvertOptions(config=str(config)))
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    "part, values",
    [
        ("scheduler", {}),
        ("scheduler", {"beta_end": "absent", "beta_start": "absent", "prediction_type": "absent"}),
        ("scheduler", {"beta_end": 0.0120000001, "num_train_timesteps": 1000.0}),
        ("scheduler", {"trained_betas": BETAS.astype(np.float32).tolist(), "beta_schedule": "linear"}),
        ("scheduler", {"timestep_spacing": "trailing", "steps_offset": 0, "_class_name": "X"}),
        ("vae", {"shift_factor": None, "scaling_factor": "absent"}),
        ("vae", {"shift_factor": 0.0}),
        ("unet", {"attention_head_dim": [4, 4, 4]}),
    ],
)
def test_what_agrees_is_loaded(part, values, whole, tmp_path):
    config, folder = whole
    check(changed(folder, tmp_path, part, **values), config)


def test_zero_terminal_snr_names_the_flag(whole, tmp_path, caplog):
    config, folder = whole
    load_model(config, changed(folder, tmp_path, "scheduler", rescale_betas_zero_snr=True), device="cpu")
    assert "was trained to zero terminal SNR" in caplog.text and "use --zero-snr" in caplog.text


@pytest.mark.few(2)
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    "values, expected",
    [
        ({"scaling_factor": 0.13025}, "scaling_factor 0.13025, and the model 0.18215"),
        ({"shift_factor": 0.1}, "shift_factor 0.1, and the model None"),
        ({"latent_channels": 16, "scaling_factor": 0.3}, "scaling_factor 0.3, latent_channels 16, and"),
    ],
)
def test_a_vae_of_another_scale_is_refused(values, expected, alone, whole, tmp_path):
    config, folder = whole
    model = load_model(config, folder, device="cpu")
    before = model.first_stage_model.encoder.conv_in.bias.clone()
    other = changed(folder, tmp_path, "vae", **values)
    with pytest.raises(WrongModelError) as caught:
        load_part(model, other / "vae" if alone else other, "first_stage_model")
    assert f"vae/config.json says {expected}" in str(caught.value)
    assert torch.equal(model.first_stage_model.encoder.conv_in.bias, before)
    load_part(model, folder / "vae" if alone else folder, "first_stage_model")


@pytest.mark.parametrize("value, fits", [(0.18215, True), (0.182, True), (0.3, False)])
def test_the_scale_in_a_training_file(value, fits, whole, tmp_path):
    config, folder = whole
    tensors = dict(tiny_model(config).state_dict()) | {"scale_factor": torch.tensor(value)}
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    if fits:
        assert load_model(config, tmp_path / "a.ckpt", device="cpu").scale_factor == 0.18215
        return
    with pytest.raises(WrongModelError, match="a.ckpt says scale_factor 0.3, and .* 0.18215"):
        load_model(config, tmp_path / "a.ckpt", device="cpu")


def test_betas_are_compared_with_those_of_a_schedule_by_name(whole, tmp_path):
    config, folder = whole
    params = read_config(config)["model"]["params"] | {"beta_schedule": "linear"}
    opened = open_weights(changed(folder, tmp_path, "scheduler", trained_betas=BETAS.tolist()))
    check_folder(opened, params, "tiny")
    with pytest.raises(WrongModelError, match="trained_betas 1000 from 0.00085"):
        check_folder(opened, params | {"beta_schedule": "cosine"}, "tiny")


@pytest.mark.parametrize("value", [["v_prediction"], {"a": 1}, 3])
def test_a_prediction_of_another_type_is_a_contradiction(whole, tmp_path, value):
    config, folder = whole
    opened = open_weights(changed(folder, tmp_path, "scheduler", prediction_type=value))
    with pytest.raises(WrongModelError, match="prediction_type"):
        check_folder(opened, read_config(config)["model"]["params"], "tiny")
