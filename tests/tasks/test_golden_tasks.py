"""Prompt to picture and picture to picture, beside what the reference scripts gave."""

import numpy as np
import pytest
import torch
from requesting import make_images

from golden_cases import cases, names
from ldm import load_model
from ldm.imaging.colour import to_uint8
from ldm.requests import Img2Img, Txt2Img


def settings(config: dict) -> dict:
    return dict(
        sampler=config["sampler"],
        steps=config["steps"],
        eta=config["eta"],
        scale=config["scale"],
        negative_prompt=config["negative_prompt"],
    )


def load(case):
    return load_model(case.files["config"], case.files["checkpoint"], device="cpu", dtype="float32")


def check_pictures(case, batches):
    batches = list(batches)
    images = torch.cat([batch.images for batch in batches])
    case.check("latents", torch.cat([batch.latents for batch in batches]))
    case.check("image", images)
    case.check("image_uint8", to_uint8(images).astype(np.int64))


@pytest.mark.few(1)
@pytest.mark.parametrize("case", cases("e2e_txt2img"), ids=names("e2e_txt2img"))
def test_txt2img_is_that_of_the_reference(case):
    model, c = load(case), case.config
    if "cond_embedding" in case.expected:
        case.check("cond_embedding", model.get_learned_conditioning([c["prompt"]]))
    drawn = torch.randn(case.draws[0].shape, generator=torch.Generator().manual_seed(case.seed))
    assert torch.equal(drawn, case.draws[0])
    batches = make_images(
        model,
        Txt2Img,
        prompts=[c["prompt"]] * c["n_samples"],
        seed=case.seed,
        height=c["H"],
        width=c["W"],
        n_samples=c["n_samples"],
        n_iter=c.get("n_iter", 1),
        **settings(c),
    )
    check_pictures(case, batches)


@pytest.mark.parametrize("case", cases("e2e_img2img"), ids=names("e2e_img2img"))
def test_img2img_is_that_of_the_reference(case):
    c = case.config
    batches = make_images(
        load(case),
        Img2Img,
        init_img=case.inputs["image_uint8"].numpy(),
        prompts=[c["prompt"]] * c["n_samples"],
        seed=case.seed,
        strength=c["strength"],
        n_samples=c["n_samples"],
        n_iter=c.get("n_iter", 1),
        **settings(c),
    )
    check_pictures(case, batches)
