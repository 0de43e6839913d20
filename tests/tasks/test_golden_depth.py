"""A picture and its depth to a picture, beside what the published demo gave; its strength 1 by its formula.

The weights of these cases are not among those kept here; SD_GOLDEN names a folder that has them.
"""

import numpy as np
import pytest
import torch
from requesting import make_images

from golden_cases import GOLDEN, Case, cases
from ldm import load_model
from ldm.imaging.colour import to_uint8
from ldm.imaging.depth import as_levels
from ldm.models.latent_depth import concat_depth
from ldm.requests import Depth2Img
from ldm.samplers.published import DDIMSampler


def complete() -> list[Case]:
    """Return the cases of the kind whose weights are here."""
    try:
        found = cases("e2e_depth")
    except LookupError:
        return []
    return [case for case in found if (GOLDEN / case.entry["files"]["checkpoint"]).exists()]


CASES = complete()


@pytest.fixture
def model(case):
    return load_model(case.files["config"], case.files["checkpoint"], device="cpu", dtype="float32")


class Given(torch.nn.Module):
    """A depth network that gives the map of a case."""

    def __init__(self, depth: torch.Tensor) -> None:
        super().__init__()
        self.given = depth

    def depth(self, images: torch.Tensor) -> torch.Tensor:
        return self.given


def pictures(model, case, depth, **changed):
    c = case.config | changed
    settings = dict(steps=c["steps"], eta=c["eta"], scale=c["scale"], negative_prompt=c["negative_prompt"])
    count = c["num_samples"]
    if isinstance(depth, torch.Tensor):
        model.depth_model, depth = Given(depth), None
    (batch,) = make_images(
        model,
        Depth2Img,
        init_img=case.inputs["image_uint8"].numpy(),
        prompts=[c["prompt"]] * count,
        depth=depth,
        seed=c["seed"],
        strength=c["strength"],
        n_samples=count,
        **settings,
    )
    return batch, batch.extras["depth"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["as the network gives it", "as a file gives it"])
def test_it_is_that_of_the_reference(model, case, kind):
    depth = case.inputs["depth_map"]
    batch, seen = pictures(model, case, depth if "network" in kind else depth[0, 0].numpy())
    case.check_all(
        {
            "latents": batch.latents,
            "image": batch.images,
            "image_uint8": to_uint8(batch.images).astype(np.int64),
            "depth_display_uint8": as_levels(seen, 8).astype(np.int64),
            "depth_latent": concat_depth(depth, batch.latents.shape[-2:]),
        }
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("steps", [5, 30])
def test_strength_1_is_all_published_steps_but_one_from_noise(model, case, steps):
    """By the published sampler class: pure noise in the place of x at t_enc = steps - 1, then `decode`."""
    depth = case.inputs["depth_map"]
    batch, _ = pictures(model, case, depth, strength=1, steps=steps)
    generator = torch.Generator().manual_seed(case.config["seed"])
    shape = batch.latents.shape
    torch.randn(shape, generator=generator)  # the posterior's, as published
    x_t = torch.randn(shape, generator=generator)
    prompts = [case.config["prompt"]] * len(x_t)
    cond = model.conditioning(model.get_learned_conditioning(prompts), depth, shape[-2:])
    uncond = model.get_learned_conditioning([case.config["negative_prompt"]] * len(x_t))
    sampler = DDIMSampler(model)
    sampler.make_schedule(steps, verbose=False)
    want = sampler.decode(
        x_t, cond, steps - 1, unconditional_guidance_scale=case.config["scale"],
        unconditional_conditioning=model.unconditional(cond, uncond),
    )  # fmt: skip
    torch.testing.assert_close(batch.latents, want, atol=1e-4, rtol=1e-4)
