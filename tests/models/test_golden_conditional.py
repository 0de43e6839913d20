"""The conditional models beside the reference: their conditioning, and whole pictures of tiny models.

The tiny models with their weights are large, so only the whole golden set (SD_GOLDEN) holds them; what ships
has the noise augmentation. tests/models/test_conditional.py asks the same of diffusers' networks.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from golden_cases import Case, cases
from ldm import load_model
from ldm.imaging.colour import from_uint8, to_uint8
from ldm.models.controlnet import ControlLDM, ControlledUnetModel, ControlNet
from ldm.models.latent_depth import concat_depth, normalise_depth
from ldm.models.noise_augmentation import CLIPEmbeddingNoiseAugmentation, ImageConcatWithNoiseAugmentation
from ldm.samplers.published import DDIMSampler

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def golden(kind: str):
    try:
        found = [pytest.param(case, id=case.name) for case in cases(kind)]
    except LookupError:
        found = [pytest.param(None, marks=pytest.mark.skip("needs the whole golden set: SD_GOLDEN"))]
    return pytest.mark.parametrize("case", found)


def noise_schedule(config: dict) -> dict:
    names = ("beta_schedule", "timesteps", "linear_start", "linear_end")
    return {name: config[name] for name in names if name in config}


@golden("noise_aug_image")
def test_noise_on_the_small_picture(case: Case):
    model = ImageConcatWithNoiseAugmentation(noise_schedule(case.config), case.config["max_noise_level"])
    torch.manual_seed(case.seed)
    z, level = model(case.inputs["x"], case.inputs.get("noise_level"))
    case.check_all({"z": z, "noise_level": level})
    z, _ = model(case.inputs["x"], level, noise=case.draws[-1])
    case.check("z", z)


def write_statistics(path: Path, mean: Tensor, std: Tensor) -> str:
    if path.suffix == ".npz":
        np.savez(path, mean=mean.numpy(), std=std.numpy())
    elif path.suffix == ".safetensors":
        save_file({"mean": mean, "std": std}, path)
    else:
        torch.save((mean, std), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".th", ".pt", ".npz", ".safetensors"])
@golden("noise_aug_clip")
def test_noise_on_the_image_embedding(case: Case, suffix: str, tmp_path: Path):
    statistics = case.inputs["stats_mean"], case.inputs["stats_std"]
    model = CLIPEmbeddingNoiseAugmentation(
        noise_schedule(case.config),
        case.config["max_noise_level"],
        clip_stats_path=write_statistics(tmp_path / f"statistics{suffix}", *statistics),
        timestep_dim=case.config["timestep_dim"],
    )
    torch.manual_seed(case.seed)
    z, embedding = model(case.inputs["x"], case.inputs.get("noise_level"))
    case.check_all({"z": z, "level_embedding": embedding, "c_adm": torch.cat([z, embedding], dim=1)})


class BareControlLDM(ControlLDM):
    """A ControlLDM of the two networks of a golden case, and no autoencoder or text encoder."""

    def __init__(self, case: Case):
        config = case.config
        super().__init__(
            control_stage_config=ControlNet(**config["control"]),
            unet_config=ControlledUnetModel(**config["unet"]),
            first_stage_config=torch.nn.Identity(),
            conditioning_key="crossattn",
            only_mid_control=config.get("only_mid_control", False),
            global_average_pooling=config.get("global_average_pooling", False),
            parameterization=config.get("parameterization", "eps"),
            linear_start=config.get("linear_start", 0.00085),
            linear_end=config.get("linear_end", 0.012),
        )
        self.control_model.load_state_dict(case.weights("control_model."))
        self.model.diffusion_model.load_state_dict(case.weights("model.diffusion_model."))
        self.control_scales = config["control_scales"]
        self.eval()


@golden("control")
def test_control(case: Case):
    model, given = BareControlLDM(case), case.inputs
    hint = given.get("hint")
    results = {}
    if hint is not None:
        controls = model.control_model(given["x"], hint, given["t"], given["context"])
        results = {f"control_{i:02}": control for i, control in enumerate(controls)}
    results["eps"] = model.apply_model(given["x"], given["t"], model.conditioning(given["context"], hint))
    case.check_all({name: results[name] for name in case.expected})


@golden("control_sampler")
def test_sampling_with_control(case: Case):
    model, config, given = BareControlLDM(case), case.config, case.inputs
    cond = model.conditioning(given["c"], given["hint"])
    torch.manual_seed(case.seed)
    final, intermediates = DDIMSampler(model).sample(
        config["steps"], config["batch_size"], config["shape"], cond, eta=config["eta"], log_every_t=1,
        unconditional_guidance_scale=config["scale"],
        unconditional_conditioning=model.unconditional(cond, given["uc"], config["guess_mode"]),
    )  # fmt: skip
    case.check_all({name: torch.stack(steps) for name, steps in intermediates.items()} | {"final": final})


def load(case: Case):
    """Load the case's model; no tiny file holds a depth network, so that one is left out."""
    return load_model(case.files["config"], case.files["checkpoint"], device="cpu", dtype="float32")


def texts(model, case: Case, prompt: str | None = None) -> tuple[Tensor, Tensor]:
    n = case.config["num_samples"]
    prompt = case.config["prompt"] if prompt is None else prompt
    return (
        model.get_learned_conditioning([prompt] * n),
        model.get_learned_conditioning([case.config["negative_prompt"]] * n),
    )


def sample(model, case: Case, cond, uncond, x_T: Tensor) -> Tensor:
    """Sample by DDIM; the steps' noise comes from the seeded global generator."""
    config = case.config
    latents, _ = DDIMSampler(model).sample(
        config["steps"], len(x_T), x_T.shape[1:], cond, eta=config["eta"], x_T=x_T,
        unconditional_guidance_scale=config["scale"], unconditional_conditioning=uncond,
    )  # fmt: skip
    return latents


def check_picture(case: Case, model, latents: Tensor) -> None:
    image = model.decode_first_stage(latents)
    case.check("latents", latents)
    case.check("image", image)
    case.check("image_uint8", to_uint8(image).astype(np.int64))


@golden("e2e_inpaint")
def test_inpainting_is_that_of_the_reference(case: Case):
    model = load(case)
    context, empty = texts(model, case)
    images = from_uint8(case.inputs["image_uint8"].numpy())
    mask = case.inputs["mask_uint8"][None, None].float() / 255
    torch.manual_seed(case.seed)
    cond = model.conditioning(context, images, mask, noise=torch.randn(case.inputs["x_T"].shape))
    latents = sample(model, case, cond, model.unconditional(cond, empty), case.inputs["x_T"])
    check_picture(case, model, latents)


@golden("e2e_depth")
def test_depth_to_image_is_that_of_the_reference(case: Case):
    model, config, depth = load(case), case.config, case.inputs["depth_map"]
    context, empty = texts(model, case)
    posterior_noise, encode_noise = case.draws[:2]
    posterior = model.encode_first_stage(from_uint8(case.inputs["image_uint8"].numpy()))
    x_0 = model.get_first_stage_encoding(posterior, posterior_noise)
    size = tuple(x_0.shape[-2:])
    case.check("depth_latent", concat_depth(depth, size))
    display = (normalise_depth(depth)[0, 0] + 1) * 127.5
    case.check("depth_display_uint8", display.clamp(0, 255).to(torch.int64))
    cond = model.conditioning(context, depth, size)

    sampler = DDIMSampler(model)
    sampler.make_schedule(config["steps"], ddim_eta=config["eta"], verbose=False)
    rows = torch.full((len(x_0),), config["t_enc"])
    x_t = encode_noise
    if not config["do_full_sample"]:
        x_t = sampler.stochastic_encode(x_0, rows, noise=encode_noise)
    latents = sampler.decode(
        x_t, cond, config["t_enc"], unconditional_guidance_scale=config["scale"],
        unconditional_conditioning=model.unconditional(cond, empty),
    )  # fmt: skip
    check_picture(case, model, latents)


@golden("e2e_upscale")
def test_upscaling_is_that_of_the_reference(case: Case):
    model = load(case)
    context, empty = texts(model, case)
    images = from_uint8(case.inputs["image_uint8"].numpy())
    cond = model.conditioning(context, images, case.config["noise_level"], noise=case.draws[0])
    latents = sample(model, case, cond, model.unconditional(cond, empty), case.inputs["x_T"])
    check_picture(case, model, latents)


@golden("e2e_control")
def test_control_is_that_of_the_reference(case: Case):
    model, config = load(case), case.config
    context, empty = texts(model, case, config["full_prompt"])
    hint = case.inputs["hint_uint8"].permute(2, 0, 1)[None].float() / 255
    model.set_control_strength(config["strength"], config["guess_mode"])
    used = config["control_scales_used"]
    assert model.control_scales[: len(used)] == pytest.approx(used)
    cond = model.conditioning(context, hint)
    uncond = model.unconditional(cond, empty, config["guess_mode"])
    torch.manual_seed(case.seed)
    check_picture(case, model, sample(model, case, cond, uncond, torch.randn(case.draws[0].shape)))
