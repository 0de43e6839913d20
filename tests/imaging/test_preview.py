"""The linear map from latents to colours: exact where colours are linear, and close for the demo model."""

import json

import numpy as np
import pytest
import torch

from ldm.config import find_config
from ldm.errors import InputError
from ldm.imaging.preview import SD, LatentToRGB, fitted, guessed, load_map


def test_the_map_is_a_matrix_and_a_bias():
    latents = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)) / 2
    picture = SD.pictures(latents)
    assert picture.shape == (2, 3, 5, 3) and picture.dtype == np.uint8
    rgb = latents[1, :, 2, 4].numpy() @ np.array(SD.factors) + np.array(SD.bias)
    assert np.abs(picture[1, 2, 4] - 255 * np.clip((rgb + 1) / 2, 0, 1)).max() <= 1


def test_a_linear_decoder_is_found_exactly():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 6, 6, generator=generator)
    true = LatentToRGB(
        ((0.1, 0.2, -0.3), (0.0, 0.25, 0.5), (-0.2, 0.1, 0.0), (0.3, -0.1, 0.2)), (0.1, -0.2, 0.0)
    )
    rgb = torch.einsum("bchw,cr->brhw", latents, torch.tensor(true.factors))
    rgb = rgb + torch.tensor(true.bias)[:, None, None]
    images = rgb.repeat_interleave(8, -1).repeat_interleave(8, -2)
    found, explained = fitted(latents, images)
    assert explained > 0.999999
    assert np.allclose(found.factors, true.factors, atol=1e-4) and np.allclose(
        found.bias, true.bias, atol=1e-4
    )


def test_values_that_are_not_finite_and_half_precision_do_no_harm():
    latents = torch.full((1, 4, 2, 2), torch.nan, dtype=torch.float16)
    assert SD.pictures(latents).shape == (1, 2, 2, 3)


def test_a_guess_is_grey_and_takes_any_number_of_channels():
    picture = guessed(7).pictures(torch.randn(1, 7, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert (picture == picture[..., :1]).all() and picture.std() > 10


def test_the_demo_models_map_is_there():
    found = load_map(find_config("configs/demo/emoji_preview.json"))
    assert len(found.factors) == 4


@pytest.mark.parametrize("content", ["", "[]", '{"factors": [[1, 2]], "bias": [0, 0, 0]}', '{"factors": 3}'])
def test_a_damaged_map_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(InputError, match="map.json"):
        load_map(tmp_path / "map.json")


def test_maps_are_read_as_written(tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"factors": SD.factors, "bias": SD.bias}))
    assert load_map(tmp_path / "m.json") == SD
