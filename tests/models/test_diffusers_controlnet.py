"""diffusers' ControlNet pipelines on folders that we convert, against our images of the same requests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_model

from ldm.checkpoint.conversion import ConvertOptions, convert
from ldm.diffusion import cond as conditioning
from ldm.diffusion.cond import Control
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import denoiser
from ldm.jobs.execute import generate
from ldm.loading import load_model
from ldm.loading.controls import load_control
from ldm.requests import Img2Img, Txt2Img
from ldm.samplers import make_sampler, sample_loop
from ldm.tasks.run import Halves

# diffusers makes NumPy arrays of tensors in Euler's set_timesteps.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEED, STEPS, SCALE, SIDE = 5, 5, 3.0, 64
PROMPT, NEGATIVE = "a red apple", "a blue pear"
CLOSE = dict(atol=1e-4, rtol=0)
THEIR_DECAY = 10 ** (-1 / 12)   # of guess mode: 13 scales from 0.1 to 1; the paper's 0.825 is this, rounded
FULL = {"num_res_blocks": 2, "channel_mult": [1, 2, 2, 2], "attention_resolutions": [4, 2, 1]}


def image(seed: int, channels: int = 3) -> np.ndarray:
    """Return (SIDE, SIDE, channels) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, channels), dtype=np.uint8)


def kept(method: Any) -> Any:
    """Compute a method once for each of its arguments."""

    def once(self: "Files", *args: Any, **kwargs: Any) -> Any:
        key = method.__name__, args, tuple(kwargs.items())
        if key not in self.made:
            self.made[key] = method(self, *args, **kwargs)
        return self.made[key]

    return once


class Files:
    """Tiny models with the 13 residuals of reference ControlNets: our files, and the folders made of them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.made: dict[tuple, Any] = {}

    def config(self, task: str) -> Path:
        path = tiny_config(task, self.home)
        whole = json.loads(path.read_text())
        params = whole["model"]["params"]
        for stage in ("unet_config", "control_stage_config"):
            if stage in params:
                params[stage]["params"] |= FULL
        path.write_text(json.dumps(whole))
        return path

    @kept
    def base(self, task: str) -> tuple[Path, Path]:
        """Return the file and the folder of a model."""
        config, file = self.config(task), self.home / f"{task}.safetensors"
        save_file(tiny_model(config).state_dict(), file)
        convert(file, self.home / task, ConvertOptions(config=str(config)))
        return file, self.home / task

    @kept
    def control(self, seed: int, family: str, is_pooled: bool = False) -> tuple[Path, Path]:
        """Return the file and the folder of a ControlNet."""
        unet = json.loads(self.config(family).read_text())["model"]["params"]["unet_config"]["params"]
        config = self.config("controlnet")
        whole = json.loads(config.read_text())
        params = whole["model"]["params"]
        without_output = {key: value for key, value in unet.items() if key != "out_channels"}
        params["unet_config"]["params"] = unet
        params["control_stage_config"]["params"] = without_output | {"hint_channels": 3}
        params["global_average_pooling"] = is_pooled
        config.write_text(json.dumps(whole))
        place = self.home / f"{family}_{seed}{'_shuffle' * is_pooled}"
        file = place.with_suffix(".safetensors")
        tensors = tiny_model(config, seed).state_dict()
        save_file({key: x for key, x in tensors.items() if key.startswith("control_model.")}, file)
        convert(file, place, ConvertOptions(config=str(config)))
        return file, place

    @kept
    def model(self, task: str) -> Any:
        return load_model(self.config(task), self.base(task)[0], device="cpu", dtype="float32")

    @kept
    def parts(self, task: str) -> dict[str, Any]:
        """Return what diffusers loads of the folder of a model."""
        import diffusers

        found = diffusers.DiffusionPipeline.from_pretrained(self.base(task)[1], local_files_only=True)
        return found.components

    @kept
    def network(self, folder: Path) -> Any:
        import diffusers

        return diffusers.ControlNetModel.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("converted"))


def pipeline(files: Files, kind: str, task: str, controls: list[Path], scheduler: str = "ddim") -> Any:
    """Return diffusers' pipeline on our folders."""
    import diffusers

    networks = [files.network(path) for path in controls]
    pipe = getattr(diffusers, f"StableDiffusionControlNet{kind}Pipeline")(
        **files.parts(task), controlnet=networks[0] if len(networks) == 1 else networks,
        requires_safety_checker=False,
    )  # fmt: skip
    if scheduler == "euler":
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, hints: list[np.ndarray], **options: Any) -> torch.Tensor:
    """Return the latents of a pipeline of diffusers."""
    pictures = [torch.from_numpy(hint).permute(2, 0, 1)[None] / 255 for hint in hints]
    name = "image" if type(pipe).__name__ == "StableDiffusionControlNetPipeline" else "control_image"
    options[name] = pictures[0] if len(pictures) == 1 else pictures
    return pipe(
        prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=SCALE,
        output_type="latent", generator=torch.Generator().manual_seed(SEED), **options,
    ).images  # fmt: skip


def ours(model: Any, request: type, units: list[dict], files: list[Path], **options: Any) -> torch.Tensor:
    """Return the latents of one of our requests, all the way from what a user writes."""
    about: dict[str, Any] = {"scale": SCALE, "n_iter": 1, "n_samples": 1} | options
    (batch,) = generate(
        model,
        request(
            prompt=PROMPT, negative_prompt=NEGATIVE, seed=SEED, dtype="float32",
            controls=[{"kind": "map"} | unit for unit in units], control_ckpt=list(map(str, files)), **about,
        ),
    )  # fmt: skip
    return batch.latents


VARIANTS: dict[str, tuple[dict, dict]] = {     # of our request and its control, and of diffusers
    "weight": ({"weight": 0.7}, {"controlnet_conditioning_scale": 0.7}),
    "interval": (
        {"start": 0.2, "end": 0.7}, {"control_guidance_start": 0.2, "control_guidance_end": 0.7}
    ),
    "whole steps only": (
        {"start": 0.3, "end": 0.9}, {"control_guidance_start": 0.3, "control_guidance_end": 0.9}
    ),
    "guess": ({"weight": 0.6}, {"controlnet_conditioning_scale": 0.6, "guess_mode": True}),
}  # fmt: skip


def txt2img(files: Files, task: str, units: list[dict], controls: list[Path], **options: Any) -> torch.Tensor:
    about = {"sampler": "ddim", "schedule": "reference", "steps": STEPS} | options
    return ours(files.model(task), Txt2Img, units, controls, height=SIDE, width=SIDE, **about)


@pytest.mark.few(1)
@pytest.mark.parametrize("task", ["sd1", "sd2-v"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_text_to_image(files, monkeypatch, variant: str, task: str):
    monkeypatch.setattr(conditioning, "GUESS_DECAY", THEIR_DECAY)
    unit, told = VARIANTS[variant]
    file, folder = files.control(1, task[:3])
    got = txt2img(files, task, [{"image": image(0), **unit}], [file], guess="guess_mode" in told)
    pipe = pipeline(files, "", task, [folder])
    torch.testing.assert_close(got, theirs(pipe, [image(0)], **told), **CLOSE)
    assert (got - theirs(pipe, [image(0)], controlnet_conditioning_scale=0.0)).abs().max() > 0.01


@pytest.mark.slow
def test_text_to_image_by_euler_under_several_controls(files):
    """Their MultiControlNetModel: each has its own weight and part of the steps."""
    (one, folder), (two, folder_2) = files.control(1, "sd1"), files.control(2, "sd1")
    units = [{"image": image(0), "weight": 0.5, "end": 0.6}, {"image": image(1), "start": 0.4}]
    options = {"sampler": "euler", "schedule": "uniform"}
    pipe = pipeline(files, "", "sd1", [folder, folder_2], "euler")
    assert type(pipe.controlnet).__name__ == "MultiControlNetModel"
    expected = theirs(
        pipe, [image(0), image(1)], controlnet_conditioning_scale=[0.5, 1.0],
        control_guidance_start=[0.0, 0.4], control_guidance_end=[0.6, 1.0],
    )  # fmt: skip
    got = txt2img(files, "sd1", units, [one, two], **options)
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.slow
def test_shuffle_acts_pooled_and_on_the_conditional_half_alone(files):
    """Its folder says global_pool_conditions; our file is known by its name."""
    file, folder = files.control(1, "sd1", is_pooled=True)
    pipe = pipeline(files, "", "sd1", [folder])
    assert pipe.controlnet.config.global_pool_conditions
    expected = theirs(pipe, [image(0)], controlnet_conditioning_scale=0.7)
    for source in (file, folder):
        got = txt2img(files, "sd1", [{"image": image(0), "weight": 0.7}], [source])
        torch.testing.assert_close(got, expected, **CLOSE)


def test_image_to_image(files):
    """By Euler: our DDIM stands one step noisier before its first step, as the reference script does."""
    (one, folder), (two, folder_2) = files.control(1, "sd1"), files.control(2, "sd1")
    pipe = pipeline(files, "Img2Img", "sd1", [folder, folder_2], "euler")
    expected = theirs(
        pipe, [image(0), image(1)], image=Image.fromarray(image(3)), strength=0.8,
        controlnet_conditioning_scale=[0.7, 1.0], control_guidance_end=[0.5, 1.0],
    )  # fmt: skip
    units = [{"image": image(0), "weight": 0.7, "end": 0.5}, {"image": image(1)}]
    got = ours(
        files.model("sd1"), Img2Img, units, [one, two], init_img=image(3), strength=0.8, steps=STEPS,
        sampler="euler", schedule="uniform",
    )  # fmt: skip
    torch.testing.assert_close(got, expected, **CLOSE)


@pytest.mark.slow
def test_inpainting_with_nine_channels(files):
    file, folder = files.control(1, "sd2")
    pixels, mask = image(3), np.zeros((SIDE, SIDE), np.uint8)
    mask[16:48, 8:56] = 255
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(8))
    expected = theirs(
        pipeline(files, "Inpaint", "inpaint", [folder]), [image(0)], image=Image.fromarray(pixels),
        mask_image=Image.fromarray(mask), latents=start, strength=1.0, controlnet_conditioning_scale=0.7,
    )  # fmt: skip

    model = files.model("inpaint")
    as_tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    hole = torch.from_numpy(mask)[None, None] / 255
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(SEED))
    network = load_control(file, model).network
    control = Control(network, torch.from_numpy(image(0)).permute(2, 0, 1)[None] / 255, 0.7)
    with torch.no_grad():
        concat = model.concat_conditioning(as_tensor, hole, noise)
        contexts = (model.get_learned_conditioning([text]) for text in (PROMPT, NEGATIVE))
        cond, uncond = Halves(*(model.hybrid(context, concat) for context in contexts)).steered((control,))
        denoise = denoiser(model.apply_model, model.schedule, model.parameterization)
        guided = ClassifierFreeGuidance(denoise, uncond, SCALE)
        *_, last = sample_loop(make_sampler("ddim", model.schedule, STEPS), guided, start, cond)
    torch.testing.assert_close(last.x_t, expected, **CLOSE)


def test_the_decay_of_guess_mode_differs_by_rounding_alone():
    """The reference counts 0.825 to the power of the depth, diffusers 13 steps from 0.1 to 1."""
    scales = torch.tensor(conditioning.control_scales(1.0, True, 13))
    torch.testing.assert_close(scales, torch.logspace(-1, 0, 13), rtol=0.006, atol=0)
