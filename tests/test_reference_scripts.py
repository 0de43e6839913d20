"""The functions that other people's scripts import from the reference's scripts and from cldm."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config, tiny_model

from golden_cases import case
from ldm.config import find_config, load_config
from ldm.errors import WrongModelError
from ldm.jobs.execute import generate
from ldm.loading import load_model
from ldm.requests import Controlnet
from scripts.img2img import load_img
from scripts.txt2img import chunk, load_model_from_config, put_watermark

ROOT = Path(__file__).resolve().parents[1]


def test_chunk_cuts_prompts_into_batches():
    assert list(chunk(["a", "b", "c", "d", "e"], 2)) == [("a", "b"), ("c", "d"), ("e",)]
    assert list(chunk(iter(range(4)), 2)) == [(0, 1), (2, 3)] and list(chunk([], 3)) == []


def textured(width: int = 256, height: int = 256) -> Image.Image:
    """Soft colours under noise, which hold the mark well."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 17 + y / 29), np.cos(x / 23), np.sin(y / 13)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 32, (height, width, 3))
    return Image.fromarray((128 + 80 * waves + noise).clip(0, 255).astype(np.uint8))


def test_put_watermark_uses_the_encoder_that_it_is_passed():
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", b"SDV2")
    image = textured()
    marked = put_watermark(image, encoder)
    bgr = np.ascontiguousarray(np.asarray(marked)[:, :, ::-1])
    expected = encoder.encode(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]), "dwtDct")
    assert np.array_equal(bgr, expected)
    assert WatermarkDecoder("bytes", 32).decode(bgr, "dwtDct") == b"SDV2"
    assert put_watermark(image) is image


def test_a_small_image_is_kept_without_a_mark(caplog):
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", b"SDV2")
    image = textured(64, 64)
    with caplog.at_level(logging.WARNING, "ldm"):
        assert put_watermark(image, encoder) is image
    assert "cannot carry the watermark" in caplog.text


@pytest.mark.parametrize("size, used", [((130, 200), (128, 192)), ((64, 64), (64, 64)), ((70, 50), (64, 64))])
def test_load_img_floors_the_sides_to_multiples_of_64(tmp_path, size, used):
    image = textured(*size)
    image.save(tmp_path / "a.png")
    loaded = load_img(str(tmp_path / "a.png"))
    expected = np.asarray(image.resize(used, Image.Resampling.LANCZOS)).astype(np.float32) / 255.0
    assert loaded.dtype == torch.float32 and loaded.shape == (1, 3, used[1], used[0])
    assert torch.equal(loaded, 2.0 * torch.from_numpy(expected[None].transpose(0, 3, 1, 2)) - 1.0)


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint_ckpt"])
def test_load_model_from_config_gives_a_model_that_samples_and_trains(name):
    files = case("e2e_txt2img_ddim").files
    config = load_config(files["config"])
    before = files[name].read_bytes()
    model = load_model_from_config(config, str(files[name]), torch.device("cpu"))
    assert not model.training and model.betas.device.type == "cpu"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"model"}
    weight = model.model.diffusion_model.out[2].weight
    was = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)        # may be mapped from the file, which must not change
    assert torch.equal(weight, was + 1) and files[name].read_bytes() == before


def test_load_model_from_config_refuses_other_weights(tmp_path):
    files = case("e2e_txt2img_ddim").files
    config = load_config(tiny_config("sd1", tmp_path))
    with pytest.raises(WrongModelError):
        load_model_from_config(config, files["checkpoint"], "cpu", verbose=True)


def test_a_controlnet_is_made_and_filled_as_its_demos_do(tmp_path):
    from cldm.hack import disable_verbosity, enable_sliced_attention
    from cldm.model import create_model, get_state_dict, load_state_dict

    config = tiny_config("controlnet", tmp_path)
    weights = tiny_model(config).state_dict()
    torch.save({"state_dict": weights, "global_step": 3}, tmp_path / "control.pth")
    enable_sliced_attention()
    model = create_model(str(config)).cpu()
    missing, unexpected = model.load_state_dict(load_state_dict(tmp_path / "control.pth", location="cpu"))
    assert not missing and not unexpected
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    assert get_state_dict({"state_dict": {"a": 1}}) == get_state_dict({"a": 1}) == {"a": 1}
    logger = logging.getLogger("ldm")
    level = logger.level
    try:
        disable_verbosity()
        assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)
    finally:
        logger.setLevel(level)


PAGE = """
from cldm.hack import disable_verbosity, enable_sliced_attention
from cldm.model import create_model, load_state_dict
from cldm.ddim_hacked import DDIMSampler
import numpy as np, torch

disable_verbosity()
enable_sliced_attention()
torch.nn.Module.cuda = lambda self: self
model = create_model("./models/page.yaml").cpu()
model.load_state_dict(load_state_dict("./models/page.pth", location="cuda"))
model = model.cuda()
sampler = DDIMSampler(model)


def process(image, prompt, a_prompt, n_prompt, count, steps, guess, strength, scale, seed, eta, save_memory):
    with torch.no_grad():
        height, width, _ = image.shape
        control = torch.from_numpy(image.copy()).float() / 255.0
        control = torch.stack([control] * count).permute(0, 3, 1, 2).clone()
        torch.manual_seed(seed)
        if save_memory:
            model.low_vram_shift(is_diffusing=False)
        text = model.get_learned_conditioning([prompt + ", " + a_prompt] * count)
        empty = model.get_learned_conditioning([n_prompt] * count)
        cond = {"c_concat": [control], "c_crossattn": [text]}
        uncond = {"c_concat": None if guess else [control], "c_crossattn": [empty]}
        if save_memory:
            model.low_vram_shift(is_diffusing=True)
        decay = 0.825 if guess else 1.0
        model.control_scales = [strength * decay ** float(12 - i) for i in range(13)]
        samples, _ = sampler.sample(
            steps, count, (4, height // 8, width // 8), cond, verbose=False, eta=eta,
            unconditional_guidance_scale=scale, unconditional_conditioning=uncond)
        if save_memory:
            model.low_vram_shift(is_diffusing=False)
        return samples, model.decode_first_stage(samples)


found = {}
for guess in (False, True):
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    latents, images = process(image, "a cat", "good", "bad", 2, 3, guess, 0.9, 2.0, 3, 0.0, guess)
    found[guess] = latents
assert images.shape == (2, 3, 64, 64) and not torch.equal(found[False], found[True])
model.learning_rate, model.sd_locked, model.only_mid_control = 1e-5, False, True
mid = process(image, "a cat", "good", "bad", 2, 3, False, 0.9, 2.0, 3, 0.0, False)[0]
assert not torch.equal(mid, found[False])
torch.save(found, "found.pt")
"""


@pytest.mark.slow
def test_a_controlnet_page_runs_alone_and_agrees_with_our_script(tmp_path):
    """Nothing but `cldm` is imported; the images are those of a request with the same options."""
    (tmp_path / "models").mkdir()
    config = tiny_config("controlnet", tmp_path)
    config.rename(tmp_path / "models" / "page.yaml")
    config = tmp_path / "models" / "page.yaml"
    torch.save(tiny_model(config).state_dict(), tmp_path / "models" / "page.pth")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", PAGE], check=True, cwd=tmp_path, env=environment)

    found = torch.load(tmp_path / "found.pt")
    model = load_model(config, tmp_path / "models" / "page.pth", device="cpu", dtype="float32")
    hint = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for guess, expected in found.items():
        request = Controlnet(
            prompt="a cat, good", negative_prompt="bad", n_samples=2, steps=3, seed=3, scale=2.0, guess=guess,
            controls=[{"kind": "map", "image": hint, "weight": 0.9}], ckpt="page.pth", dtype="float32",
            height=64, width=64,
        )
        (batch,) = generate(model, request)
        torch.testing.assert_close(batch.latents, expected, atol=1e-4, rtol=0)


def test_the_configurations_of_controlnets_pages_are_found_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, included in {
        "cldm_v15": "cldm_v15", "cldm_v21": "cldm_v21", "control_v11p_sd15_canny": "cldm_v15",
        "control_v11e_sd15_shuffle": "cldm_v15_avg_pool", "control_v11f1p_sd15_depth": "cldm_v15",
        "control_v11p_sd21_openpose": "cldm_v21",
    }.items():
        assert find_config(f"./models/{name}.yaml").name == f"{included}.yaml"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "cldm_v15.yaml").write_text("mine: 1")
    assert find_config("./models/cldm_v15.yaml").read_text() == "mine: 1"


def test_the_page_that_trains_is_told_how_training_goes(tmp_path, caplog):
    from cldm.logger import ImageLogger

    assert ImageLogger(batch_frequency=300).batch_freq == 300
    assert "scripts/train.py --config" in caplog.text and len(caplog.records) == 1
