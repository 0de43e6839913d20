"""The linear map from latents to colours: exact where colours are linear, and close for the demo model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from demo.fit_preview import fit_map
from ldm.config import find_config, load_config
from ldm.errors import InputError
from ldm.imaging.colour import from_uint8, to_uint8
from ldm.imaging.preview import SD, LatentToRGB, grey_map, load_map
from ldm.util import instantiate_from_config


def test_the_map_is_a_matrix_and_a_bias():
    latents = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)) / 2
    image = SD.images(latents)
    assert image.shape == (2, 3, 5, 3) and image.dtype == np.uint8
    rgb = latents[1, :, 2, 4].numpy() @ np.array(SD.factors) + np.array(SD.bias)
    assert np.abs(image[1, 2, 4] - 255 * np.clip((rgb + 1) / 2, 0, 1)).max() <= 1


def test_a_linear_decoder_is_found_exactly():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 6, 6, generator=generator)
    true = LatentToRGB(
        ((0.1, 0.2, -0.3), (0.0, 0.25, 0.5), (-0.2, 0.1, 0.0), (0.3, -0.1, 0.2)), (0.1, -0.2, 0.0)
    )
    rgb = torch.einsum("bchw,cr->brhw", latents, torch.tensor(true.factors))
    rgb = rgb + torch.tensor(true.bias)[:, None, None]
    images = rgb.repeat_interleave(8, -1).repeat_interleave(8, -2)
    found, explained = fit_map(latents, images)
    assert explained > 0.999999
    assert np.allclose(found.factors, true.factors, atol=1e-4) and np.allclose(
        found.bias, true.bias, atol=1e-4
    )


def test_values_that_are_not_finite_and_half_precision_do_no_harm():
    latents = torch.full((1, 4, 2, 2), torch.nan, dtype=torch.float16)
    assert SD.images(latents).shape == (1, 2, 2, 3)


def test_a_guess_is_grey_and_takes_any_number_of_channels():
    image = grey_map(7).images(torch.randn(1, 7, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert (image == image[..., :1]).all() and image.std() > 10


def test_the_demo_models_map_fits_its_autoencoder():
    """Coloured shapes are seen in their colours; after new weights demo/fit_preview.py is due."""
    params = load_config(find_config("configs/demo/emoji.yaml"))["model"]["params"]
    autoencoder = instantiate_from_config(params["first_stage_config"]).eval()
    weights = load_file(find_config("configs/demo/emoji.safetensors"))
    prefix = "first_stage_model."
    part = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
    autoencoder.load_state_dict(part)
    canvas = Image.new("RGB", (128, 128), (90, 140, 230))
    draw = ImageDraw.Draw(canvas)
    draw.ellipse((20, 20, 100, 100), fill=(250, 200, 60))
    draw.rectangle((40, 60, 80, 85), fill=(200, 40, 40))
    images = from_uint8(np.asarray(canvas))
    with torch.no_grad():
        latents = autoencoder.encode(images).mode() * params["scale_factor"]
    seen = load_map(find_config("configs/demo/emoji_preview.json")).images(latents).astype(float)
    small = to_uint8(torch.nn.functional.interpolate(images, (16, 16), mode="area")).astype(float)
    assert np.corrcoef(seen.ravel(), small.ravel())[0, 1] > 0.8
    assert np.abs(seen - small).mean() < 40
    assert np.abs(grey_map(4).images(latents) - small).mean() > np.abs(seen - small).mean()


@pytest.mark.parametrize("content", ["", "[]", '{"factors": [[1, 2]], "bias": [0, 0, 0]}', '{"factors": 3}'])
def test_a_damaged_map_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(InputError, match="map.json"):
        load_map(tmp_path / "map.json")


def test_maps_are_read_as_written(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"factors": SD.factors, "bias": SD.bias}))
    assert load_map(tmp_path / "m.json") == SD
