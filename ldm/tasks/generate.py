"""The one door to the tasks: a request and a model in, batches of images out.

The request is loaded (`ldm.jobs.inputs`: files are `InputArray`s, `prompts` holds one prompt for each image
of a pass, a mask is prepared) and resolved (`ldm.requests.resolving`: no None means "the model's own").
"""

from collections.abc import Iterator
from typing import Any

from ldm.models.latent_diffusion import LatentDiffusion
from ldm.requests import Request
from ldm.requests.resolving import REFERENCE
from ldm.tasks.latents import Position
from ldm.tasks.sampling import Batch, Settings, Track


def generate(
    model: LatentDiffusion,
    request: Request,
    track: Track | None = None,
    resume: Position | None = None,
    dtype: Any = None,
) -> Iterator[Batch]:
    """Make the images that a request asks for, a batch at a time."""
    import torch

    task = type(request).__name__.lower()
    settings = Settings(
        sampler=request.sampler,
        num_steps=request.steps,
        spacing=None if request.schedule == REFERENCE else request.schedule,
        eta=request.eta,
        zero_snr=request.zero_snr,
        guidance_scale=request.scale,
        negative_prompt=request.negative_prompt,
        prompt_syntax=getattr(request, "prompt_syntax", "plain"),
        clip_skip=getattr(request, "clip_skip", None),
        long_prompts=getattr(request, "long_prompts", "chunk"),
        guidance_rescale=request.guidance_rescale,
        guidance_interval=request.guidance_interval,
        dynamic_threshold=request.dynamic_threshold,
        rng=request.rng,
        exact=request.exact,
        dtype=dtype or torch.float32,
    )
    common = {
        "seed": request.seed, "batch_size": request.n_samples, "n_iter": request.n_iter, "settings": settings,
        "fixed_code": request.fixed_code, "track": track, "resume": resume,
    }  # fmt: skip
    return _TASKS[task](model, request, list(request.prompts), common)


def _latents(request: Request) -> Any:
    return None if request.latents is None else request.latents.values


def _txt2img(model, request, prompts, common):
    from ldm.tasks.hires import Hires, hires_txt2img
    from ldm.tasks.txt2img import txt2img

    common |= {"height": request.height, "width": request.width, "latents": _latents(request)}
    if request.hires is None:
        return txt2img(model, prompts, **common)
    second = Hires(request.hires, request.hires_mode, request.hires_strength, request.hires_steps)
    return hires_txt2img(model, prompts, second, **common)


def _sample(model, request, prompts, common):
    from ldm.tasks.sample import sample

    common |= {"height": request.height, "width": request.width, "latents": _latents(request)}
    return sample(model, len(prompts), **common)


def _img2img(model, request, prompts, common):
    from ldm.imaging.fit import choose_fit
    from ldm.tasks.img2img import img2img

    if request.latents is not None:  # (height, width) of the image that they are of is their `about`
        image, size = request.latents.values, request.latents.about
    else:
        fit = choose_fit(request.init_img.values, request.fit, request.height, request.width)
        image, size = fit.of(request.init_img.values, model.size_multiple), None
    return img2img(model, image, prompts, strength=request.strength, size=size, **common)


def _inpaint(model, request, prompts, common):
    from ldm.tasks.inpaint import inpaint

    how = {"strength": request.strength, "mask_blur": request.mask_blur, "only_masked": request.only_masked}
    how |= {"matched": not request.no_match_border, "raw": request.raw, "model_size": model.training_size}
    return inpaint(model, request.init_img.values, request.mask.values, prompts, **how, **common)


def _outpaint(model, request, prompts, common):
    from ldm.tasks.outpaint import outpaint

    sides = {name: getattr(request, name) for name in ("left", "right", "up", "down")}
    how = {"strength": request.strength, "window": request.window}
    return outpaint(model, request.init_img.values, prompts, **sides, **how, **common)


def _depth2img(model, request, prompts, common):
    from ldm.tasks.depth2img import depth2img

    image = None if request.init_img is None else request.init_img.values
    depth = None if request.depth is None else request.depth.values
    size = (request.height, request.width) if request.height else None
    return depth2img(model, image, prompts, depth=depth, strength=request.strength, size=size, **common)


def _upscale(model, request, prompts, common):
    from ldm.tasks.upscale import plan_upscale, upscale

    image = request.init_img.values
    tiles = {"tile": request.tile, "overlap": request.overlap, "max_memory": request.max_memory}
    tiling = plan_upscale(model, image.shape[:2], request.n_samples, common["settings"], **tiles)
    faithful = None if request.faithful is None else request.faithful == "on"
    how = {"noise_level": request.noise_level, "faithful": faithful, "latents": _latents(request)}
    return upscale(model, image, prompts, tiling=tiling, **how, **common)


def _unclip(model, request, prompts, common):
    from ldm.tasks.unclip import MIX_NOISE_LEVEL, unclip

    again = {None: MIX_NOISE_LEVEL, "off": None}.get(request.mix_noise_level, request.mix_noise_level)
    how = {"weights": request.image_weights, "noise_level": request.noise_level, "mix_noise_level": again}
    how |= {"height": request.height, "width": request.width, "latents": _latents(request)}
    return unclip(model, [image.values for image in request.init_img], prompts, **how, **common)


_TASKS = {
    "txt2img": _txt2img, "img2img": _img2img, "inpaint": _inpaint, "outpaint": _outpaint,
    "depth2img": _depth2img, "upscale": _upscale, "unclip": _unclip, "sample": _sample,
}  # fmt: skip
