"""Upscaling from picture and prompt to picture, beside what the reference's page gave."""

import numpy as np
import pytest
from requesting import make_images

from golden_cases import cases
from ldm import load_model
from ldm.imaging.colour import to_uint8
from ldm.requests import Upscale


def kind() -> list:
    """Return the cases, which only the whole golden set (SD_GOLDEN) holds: their weights are large."""
    try:
        return [pytest.param(case, id=case.name) for case in cases("e2e_upscale")]
    except LookupError:
        return [pytest.param(None, marks=pytest.mark.skip("needs the whole golden set: SD_GOLDEN"))]


@pytest.mark.parametrize("case", kind())
def test_upscaling_is_that_of_the_reference(case):
    c = case.config
    model = load_model(case.files["config"], case.files["checkpoint"], device="cpu", dtype="float32")
    settings = {name: c[name] for name in ("sampler", "steps", "eta", "scale", "negative_prompt")}
    count = c["num_samples"]
    (batch,) = make_images(
        model,
        Upscale,
        init_img=case.inputs["image_uint8"].numpy(),
        prompts=[c["prompt"]] * count,
        seed=case.seed,
        noise_level=c["noise_level"],
        n_samples=count,
        **settings,
    )
    case.check("latents", batch.latents)
    case.check("image", batch.images)
    case.check("image_uint8", to_uint8(batch.images).astype(np.int64))
