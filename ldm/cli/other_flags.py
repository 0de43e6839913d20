"""The flags of other tools: which of ours they mean, or what to do instead.

`-` and `_` are the same in every flag. A flag of A1111's web UI, diffusers, InvokeAI or CompVis with the same
meaning as one of ours is taken as ours; one with another meaning is an error that says what to use.
"""

from collections.abc import Callable, Iterable

from ldm.errors import InputError, nearest
from ldm.wording import script

SAME = {
    "prompt": "positive-prompt text-prompt text",
    "negative_prompt": "negative neg-prompt neg n-prompt uncond-prompt unconditional-prompt un-cond",
    "from_file": "prompt-file prompts-file prompts-from-file file",
    "height": "height image-height",
    "width": "width image-width",
    "steps": "steps ddim-steps num-inference-steps infer-steps sampling-steps sample-steps num-steps n-steps",
    "sampler": "sampler-name sampling-method sampler-type sample-method",
    "schedule": "schedule-type",
    "scale": "cfg-scale cfg guidance-scale guidance unconditional-guidance-scale",
    "n_samples": "batch-size num-images-per-prompt num-samples num-images",
    "n_iter": "batch-count num-batches n-iterations iterations",
    "seed": "random-seed noise-seed manual-seed",
    "strength": "denoising-strength denoise-strength denoise",
    "init_img": "init-image input-image image img input source-image image-path input-path",
    "mask": "mask-image mask-img",
    "depth": "depth-map depth-image",
    "ckpt": "model checkpoint ckpt-path model-path checkpoint-path weights-path model-name-or-path "
    "pretrained-model-name-or-path sd-model-checkpoint",
    "config": "config-file config-path yaml original-config-file",
    "clip_skip": "clip-stop-at-last-layers CLIP-stop-at-last-layers",
    "vae": "vae-path vae-file vae-ckpt",
    "dtype": "torch-dtype data-type",
    "outdir": "output-dir out-dir output-folder output out outpath output-path save-dir",
    "n_rows": "grid-columns",
    "no_grid": "skip-grid do-not-save-grid",
    "guidance_rescale": "rescale-cfg cfg-rescale guidance-rescale-factor cfg-rescale-multiplier",
    "zero_snr": "rescale-betas-zero-snr zero-terminal-snr ztsnr",
    "prediction": "prediction-type parameterization",
    "rng": "randn-source rng-type",
    "control_ckpt": "controlnet controlnet-path controlnet-ckpt controlnet-model controlnet-model-path "
    "controlnet-model-name-or-path",
    "guess": "guess-mode",
    "control_resolution": "detect-resolution controlnet-resolution processor-res controlnet-processor-res",
}  # option -> flags of other tools, with "-" for "_"

WORDS = {
    "fp16": ("--dtype", "float16"), "half": ("--dtype", "float16"),
    "fp32": ("--dtype", "float32"), "no-half": ("--dtype", "float32"),
    "full-precision": ("--dtype", "float32"),
    "cpu": ("--device", "cpu"), "use-cpu": ("--device", "cpu"),
    "cuda": ("--device", "cuda"), "gpu": ("--device", "cuda"),
    "karras": ("--schedule", "karras"), "use-karras-sigmas": ("--schedule", "karras"),
    "no-watermark": ("--watermark", "off"), "disable-watermark": ("--watermark", "off"),
    "skip-metadata": ("--no-metadata",), "disable-metadata": ("--no-metadata",),
}  # fmt: skip

_METHOD = "--sampler names the method and --schedule the spacing of its steps"
_LOW_MEMORY = "--max-memory SIZE computes in tiles that fit; without it, the free memory is the limit"
_NO_CHECKER = "there is no safety checker to turn off; leave it out"
_HIRES = "--hires SCALE is the second pass at a higher resolution"
_ATTENTION = "PyTorch's memory-efficient attention is always used; leave it out"
_SEAMLESS = "seamless tiles are not supported (--tile is about memory); leave it out"
_NOISE = "InvokeAI's changes of the noise are not supported; leave it out"
_LORA = "LoRAs, hypernetworks and textual inversion embeddings cannot be applied yet"
_WEIGHT = "--control KIND:FILE@WEIGHT says how strongly a map steers"
_INTERVAL = "--control KIND:FILE[START-END] says in which part of the steps a map steers"
_MAP = "--control KIND:FILE makes a map of an image, and map:FILE takes one that is a map"
_KIND = "the KIND of --control KIND:FILE names what makes the map"
ADVICE = {
    "controlnet-conditioning-scale": _WEIGHT, "conditioning-scale": _WEIGHT, "control-weight": _WEIGHT,
    "control-strength": _WEIGHT, "control-scale": _WEIGHT, "controlnet-weight": _WEIGHT,
    "controlnet-strength": _WEIGHT, "controlnet-scale": _WEIGHT,
    "control-guidance-start": _INTERVAL, "control-guidance-end": _INTERVAL,
    "controlnet-guidance-start": _INTERVAL, "controlnet-guidance-end": _INTERVAL,
    "controlnet-start": _INTERVAL, "controlnet-end": _INTERVAL, "guidance-start": _INTERVAL,
    "guidance-end": _INTERVAL, "starting-control-step": _INTERVAL, "ending-control-step": _INTERVAL,
    "control-image": _MAP, "controlnet-image": _MAP, "controlnet-input-image": _MAP,
    "conditioning-image": _MAP, "hint": _MAP, "hint-image": _MAP,
    "preprocessor": _KIND, "controlnet-preprocessor": _KIND, "controlnet-module": _KIND,
    "controlnet-type": _KIND, "control-type": _KIND, "annotator": _KIND,
    "low-threshold": "--control canny,low=N:FILE does that",
    "high-threshold": "--control canny,high=N:FILE does that",
    "pixel-perfect": "annotators see images at the size of the result; leave it out",
    "controlnet-mode": "--control-mode says whether the prompt or the map counts more",
    "scheduler": _METHOD, "sampler-index": _METHOD,
    "medvram": _LOW_MEMORY, "lowvram": _LOW_MEMORY, "low-vram": _LOW_MEMORY,
    "vae-tiling": _LOW_MEMORY, "enable-vae-tiling": _LOW_MEMORY, "enable-vae-slicing": _LOW_MEMORY,
    "disable-safety-checker": _NO_CHECKER, "no-nsfw": _NO_CHECKER, "nsfw": _NO_CHECKER,
    "disable-nsfw-checker": _NO_CHECKER, "safety-checker": _NO_CHECKER,
    "enable-hr": _HIRES, "hr-scale": _HIRES, "hr-upscaler": _HIRES, "hires-fix": _HIRES, "hr": _HIRES,
    "xformers": _ATTENTION, "opt-sdp-attention": _ATTENTION, "attention-slicing": _ATTENTION,
    "opt-split-attention": _ATTENTION,
    "lora": _LORA, "lora-path": _LORA, "hypernetwork": _LORA, "embedding": _LORA, "embedding-path": _LORA,
    "embeddings-dir": _LORA, "textual-inversion": _LORA,
    "no-half-vae": "the autoencoder never computes in float16; leave it out",
    "skip-save": "every image is saved; leave it out, or use --no-grid to save no grid",
    "laion400m": "give the file of that model to --ckpt",
    "tiling": _SEAMLESS, "seamless": _SEAMLESS, "perlin": _NOISE, "threshold": _NOISE,
    "upscale": f"{script('upscale')} enlarges images", "inpaint-full-res": "--only-masked PIXELS does that",
    "pixels": "--left, --right, --up and --down say how far to extend the image",
    "restore-faces": "faces are not restored; leave it out",
    "variation-seed": "variations of a seed are not supported; leave it out",
    "subseed": "variations of a seed are not supported; leave it out",
    "styles": "write the style into --prompt",
    "image-guidance-scale": "editing by instruction is not supported",
}  # fmt: skip


TRAINING = {
    "lr": "train.learning_rate=RATE", "learning-rate": "train.learning_rate=RATE",
    "max-train-steps": "train.max_steps=N", "max-steps": "train.max_steps=N",
    "batch-size": "train.batch_size=N", "train-batch-size": "train.batch_size=N",
    "seed": "train.seed=N", "gpus": "train.devices=N",
    "mixed-precision": "train.precision=bfloat16", "gradient-accumulation-steps": "train.accumulate=N",
    "train-data-dir": "data.params.path=FOLDER", "resolution": "data.params.size=PIXELS",
    "base": "--config FILE", "logdir": "--run FOLDER", "output-dir": "--run FOLDER", "name": "--run FOLDER",
    "pretrained-model-name-or-path": "diffusion.ckpt=FILE", "ckpt": "diffusion.ckpt=FILE",
}  # fmt: skip
"""what scripts/train.py has instead of the flags of other trainers"""


CONTROLNET = {
    "strength": _WEIGHT, "image-resolution": "--H and --W give the size of the result",
    "init-img": _MAP, "input-image": _MAP, "image": _MAP, "input": _MAP, "img": _MAP, "init-image": _MAP,
}  # fmt: skip
"""what scripts/controlnet.py has instead of the parameters of ControlNet's pages"""


def fold(flag: str) -> str:
    """Return a flag without leading dashes, with `-` for `_`."""
    return flag.lstrip("-").replace("_", "-")


def translate(
    word: str, flags: Iterable[str], flag_of: Callable[[str], str | None], program: str
) -> list[str]:
    """Return the words that a flag means: with its separators as declared, or that of another tool as ours.

    Args:
        word: `--flag` or `--flag=value`.
        flags: those that the program has.
        flag_of: the flag of an option, None if the program does not have the option.
        program: name of the script, for the error.

    Raises: InputError for a flag that means nothing here.
    """
    name, equals, value = word.partition("=")
    if name in flags:
        return [word]
    folded = fold(name)
    for flag in flags:
        if fold(flag) == folded and flag.startswith("--"):
            return [flag + equals + value]
    for option, others in SAME.items():
        if folded in others.split() and (ours := flag_of(option)):
            return [ours + equals + value]
    if folded in WORDS and not equals and WORDS[folded][0] in flags:
        return list(WORDS[folded])
    for flag in flags:  # an abbreviation
        if flag.startswith(name) or (flag.startswith("--") and fold(flag).startswith(folded)):
            return [flag[: len(name)] + equals + value]
    raise unknown(name, flags, program)


def unknown(name: str, flags: Iterable[str], program: str) -> InputError:
    """Return the error for a flag that the program does not have, with advice or the nearest flag."""
    folded, known = fold(name), [flag for flag in flags if flag.startswith("--")]
    alike = [flag for flag in known if fold(flag).lower() == folded.lower()]
    if "--dry-run" in flags and folded in TRAINING:
        hint = f"; write {TRAINING[folded]}"
    elif "--added-prompt" in flags and folded in CONTROLNET:
        hint = f": {CONTROLNET[folded]}"
    elif folded in ADVICE:
        hint = f": {ADVICE[folded]}"
    elif alike:
        hint = f"; did you mean {alike[0]!r}?"
    elif "--outdir" in flags and (others := _scripts_with(folded)):
        hint = f", which is {others}"
    else:
        hint = nearest(f"--{folded}", known)
    return InputError(f"{program} has no {name}{hint}; see --help")


def _scripts_with(folded: str) -> str:
    """Return our flag, and the scripts of other tasks that have it; "" if none has."""
    from ldm.requests import NAMES, fields_of, find

    option = next((option for option, others in SAME.items() if folded in others.split()), None)
    found: dict[str, list[str]] = {}
    for name in NAMES:
        for each in fields_of(find(name)).values():
            if each.name == option or folded in map(fold, each.option.flags):
                found.setdefault(each.flag, []).append(script(name).removeprefix("scripts/"))
    return " and ".join(f"{flag} of {', '.join(scripts)}" for flag, scripts in found.items())
