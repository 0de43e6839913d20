"""The functions that other people's scripts import from the reference's scripts and from cldm."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_config, tiny_model

from golden_cases import case
from ldm.config import load_config
from ldm.errors import WrongModelError
from scripts.img2img import load_img
from scripts.txt2img import chunk, load_model_from_config, put_watermark


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
