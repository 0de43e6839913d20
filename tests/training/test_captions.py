"""Training a model that reads captions, on images without any."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ldm.data.images import CaptionedImages
from ldm.errors import InputError
from ldm.training.diffusion import DiffusionOptions, DiffusionTraining


def test_training_asks_for_captions_if_the_model_reads_them(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = CaptionedImages(str(tmp_path), size=8)
    module = SimpleNamespace(
        diffusion=SimpleNamespace(cond_stage_model=object()), options=DiffusionOptions(cache_latents=0)
    )
    with pytest.raises(InputError, match="no image has a caption"):
        DiffusionTraining.prepare(module, data, tmp_path, torch.device("cpu"))
    module.diffusion.cond_stage_model = None
    assert DiffusionTraining.prepare(module, data, tmp_path, torch.device("cpu")) is data
