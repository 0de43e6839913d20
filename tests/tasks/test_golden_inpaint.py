"""Inpainting beside what the reference's page gave, without its watermark."""

import numpy as np
import pytest
import torch
from requesting import make_images

from golden_cases import cases
from ldm import load_model
from ldm.imaging.colour import to_uint8
from ldm.requests import Inpaint

try:  # the weights are not in every set of cases
    CASES = [case for case in cases("e2e_inpaint") if case.files["checkpoint"].is_file()]
except LookupError:
    CASES = []


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_inpainting_is_that_of_the_reference(case):
    c = case.config
    drawn = np.random.RandomState(case.seed).randn(*case.inputs["x_T"].shape)
    assert torch.equal(torch.from_numpy(drawn).float(), case.inputs["x_T"])
    batches = make_images(
        load_model(case.files["config"], case.files["checkpoint"], device="cpu", dtype="float32"),
        Inpaint,
        init_img=case.inputs["image_uint8"].numpy(),
        mask=case.inputs["mask_uint8"].numpy().astype(np.float32) / 255,
        prompts=[c["prompt"]] * c["num_samples"],
        seed=case.seed,
        strength=c.get("strength", 1.0),
        n_samples=c["num_samples"],
        sampler=c["sampler"],
        steps=c["steps"],
        eta=c["eta"],
        scale=c["scale"],
        negative_prompt=c["negative_prompt"],
        raw=True,
    )
    batches = list(batches)
    images = torch.cat([batch.images for batch in batches])
    case.check("latents", torch.cat([batch.latents for batch in batches]))
    case.check("image", images)
    case.check("image_uint8", to_uint8(images).astype(np.int64))
