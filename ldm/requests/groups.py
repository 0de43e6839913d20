"""Groups of options that several tasks share.

They keep the names and defaults of the reference scripts. A default of None means the model's own, see
`ldm.requests.resolving`.
"""

from typing import Any, Literal

from ldm.requests.control_unit import ControlUnit, read_units
from ldm.requests.fields import option
from ldm.requests.readers import (
    combinations,
    dtype,
    enlargement,
    interval,
    percentile,
    seed,
    sha256_digest,
    size_in_bytes,
    strings,
)

# fmt: off
MAX_SIDE = 16_384


def pixels(*flags: str, help: str, **about: Any) -> Any:
    """Declare a height or width in pixels; None is that of the model or of the image."""
    return option(None, *flags, metavar="PIXELS", low=1, high=MAX_SIDE, help=help, **about)


def image(help: str, *flags: str, default: Any = None, **about: Any) -> Any:
    """Declare an input image, or with a default of () several; the words of the help before ; name it."""
    about |= {"is_file": True, "is_image": True}
    return option(default, *(flags or ("--init-img",)), metavar="FILE", help=help, **about)


def strength(default: float | None, help: str, **about: Any) -> Any:
    """Declare the strength, how much is repainted."""
    return option(default, "--strength", metavar="S", low=0, high=1, help=help, **about)


def steps(*flags: str, **about: Any) -> Any:
    """Declare the number of steps; the first flag is that of the task's reference script."""
    return option(None, *flags, metavar="N", low=1, usual=50, help="number of sampling steps", **about)


class Negative:
    SECTION = ("prompt", "")
    negative_prompt: str = option(
        "", "--negative-prompt", metavar="TEXT", default_text="", help="what the image should not show")
    prompts: tuple[str, ...] = option(
        (), read=strings, help="one prompt for each image of a pass; replaces --prompt and --from-file")


class Prompts(Negative):
    prompt: str = option(
        "", "--prompt", metavar="TEXT", help="the text to render; '' is the empty prompt")
    from_file: str | None = option(
        None, "--from-file", metavar="FILE", is_file=True,
        help="read prompts from this file, one per line; an empty line is an empty prompt")


class PromptSyntax:
    SECTION = ("prompt syntax", "see docs/PROMPTS.md")
    prompt_syntax: Literal["plain", "a1111", "compel"] = option(
        "plain", "--prompt-syntax",
        help="syntax of weights and breaks: a1111 reads (x:1.2), ((x)), [x], BREAK; compel reads x++, "
        "(x)1.2, .and(); plain has none")
    clip_skip: int | None = option(
        None, "--clip-skip", metavar="N", low=1, default_text="the model's own, 1 for SD 1.x, 2 for SD 2.x",
        help="use the text encoder's states before its last N - 1 blocks")
    long_prompts: Literal["chunk", "cut"] = option(
        "chunk", "--long-prompts",
        help="encode tokens beyond the text encoder's limit (75 for SD) in further chunks, or cut them off "
        "as the reference does")
    combinations: tuple[str, int] | str | None = option(
        None, "--combinations", metavar=("all|random", "N"), words=True, read=combinations,
        default_text="off, they are plain text",
        help="expand {red|green} and __colour__ in prompts: one image for every combination, or for N drawn "
        "with --seed")
    wildcards: str | None = option(
        None, "--wildcards", metavar="DIR", is_file=True,
        help="folder of the wildcard files: colour.txt lists the values of __colour__, one per line")


class Size:
    SECTION = ("size", "")
    height: int | None = pixels("--H", help="height of an image, any size", default_text="512; demo: 128")
    width: int | None = pixels("--W", help="width of an image, any size", default_text="512; demo: 128")


class Sampling:
    SECTION = ("sampling", "")
    steps: int | None = steps("--steps", "--ddim_steps")
    sampler: str | None = option(
        None, "--sampler", metavar="NAME", default_text="ddim",
        help="sampler, see --list-samplers; it runs exactly --steps UNet evaluations")
    schedule: str | None = option(
        None, "--schedule", metavar="NAME", default_text="the sampler's own; reference without --sampler",
        help="spacing of the steps: uniform, quad, trailing, linspace, karras, exponential, or reference, "
        "the times of the reference scripts")
    zero_snr: bool = option(
        False, "--zero-snr",
        help="rescale the noise schedule to start from pure noise, so that v-prediction models reach true "
        "black and white; works best with --schedule trailing and --guidance-rescale 0.7")
    eta: float | None = option(
        None, "--eta", metavar="ETA", low=0, usual=0.0, default_text="the sampler's own; ddim: {}",
        help="noise added by each step: 0 is deterministic, 1 is as noisy as DDPM")
    scale: float | None = option(
        None, "--scale", metavar="W", usual=9.0, default_text="{}; the demo models have their own",
        help="guidance scale: higher follows the prompt more closely, 1 turns guidance off")
    seed: int = option(
        42, "--seed", metavar="N", read=seed, help="the same seed and options give the same images")
    n_iter: int = option(1, "--n_iter", metavar="N", low=1, help="number of passes over all prompts")
    n_samples: int = option(1, "--n_samples", metavar="N", low=1, help="batch size: images sampled together")
    fixed_code: bool = option(False, "--fixed_code", help="use the same initial noise in every pass")


class Guidance:
    SECTION = ("guidance", "modify classifier-free guidance; see docs/GUIDANCE.md")
    guidance_rescale: float = option(
        0.0, "--guidance-rescale", metavar="PHI", low=0, high=1,
        help="reduce the contrast that guidance adds, from 0 (not at all) to 1 (to that of the conditional "
        "prediction); 0.7 is common for v-prediction models")
    guidance_interval: tuple[float, float] | None = option(
        None, "--guidance-interval", metavar="LOW,HIGH", read=interval, default_text="0,1",
        help="apply guidance only at these training times, t / 999: 1 is noise, the start of sampling, 0 is "
        "clean, its end; the other steps cost half. In SD's schedule 0.07, 0.35, 0.67, 0.81 and 1 are the "
        "sigmas 0.28, 1, 2.9, 5.4 and 14.6")
    dynamic_threshold: float | None = option(
        None, "--dynamic-threshold", metavar="P", read=percentile, default_text="off",
        help="keep x_0 within -4..4, the range of latents: scale it down by its percentile P (above 0, up to "
        "1) and clip the rest; 0.995 is common, against the oversaturation of a high --scale")


class Randomness:
    SECTION = ("random numbers", "see docs/RANDOMNESS.md")
    rng: Literal["reference", "per-image", "gpu-philox"] = option(
        "reference", "--rng",
        help="reference: draw noise as the reference scripts do, to reproduce their images. per-image: "
        "image k of a run is the one that seed + k gives on its own, in any batch and on any device. "
        "gpu-philox: the same with the numbers that CUDA draws, for seeds from other tools")
    exact: bool = option(
        False, "--exact", default_text="the last bits may differ",
        help="run the networks on one image at a time, so that with --rng per-image no bit of an image "
        "depends on --n_samples")


class Memory:
    SECTION = ("memory", "images that do not fit into memory are computed in blended tiles")
    max_memory: int | None = option(
        None, "--max-memory", metavar="SIZE", read=size_in_bytes, default_text="auto",
        help="limit such as 8GB or 6.5GiB, of the process on CPUs and of the device on GPUs; auto is the "
        "free memory. The tiles, and with them fine details of an image, depend on it, unless --tile is "
        "given")
    tile: int | None = option(
        None, "--tile", metavar="N", low=1, default_text="the whole image, or the largest tiles that fit",
        help="run the UNet on tiles of N pixels of the image (of the small image in upscaling)")
    overlap: int | None = option(
        None, "--overlap", metavar="N", low=0, default_text="a quarter of --tile",
        help="pixels that neighbouring tiles share")


class Resume:
    SECTION = ("control", "Ctrl-C saves a run so that it can be resumed; see docs/CONTROL.md")
    preview_every: int | None = option(
        None, "--preview-every", metavar="N", low=1, default_text="never", changes_image=False,
        help="write a low-resolution preview of the batch to DIR/preview.png every N steps")
    latents: Any = option(
        None, "--latents", metavar="FILE", is_file=True, default_text="",
        help="latents of an interrupted run, which is resumed with its own options")


class Control(Resume):
    SECTION = Resume.SECTION
    save_latents: bool = option(
        False, "--save-latents", changes_image=False,
        help="save the latents of each image next to it, DIR/samples/00000.latents.safetensors")
    latents: Any = option(
        None, "--latents", metavar="FILE", is_file=True, default_text="",
        help="latents of an interrupted run, which is resumed with its own options, or noise to start from")


class Controls:
    SECTION = ("ControlNet", "maps of images steer what is where; see docs/CONTROLNET.md")
    controls: tuple[ControlUnit, ...] = option(
        (), "--control", metavar="KIND:FILE[@WEIGHT][[START-END]]", words=True, is_repeatable=True,
        read=read_units, default_text="",
        help="steer by a map of FILE that an annotator makes, such as canny:photo.png@0.8[0-0.6] for the "
        "first 60 % of the steps; map:FILE is a map already, and KIND,NAME=VALUE:FILE sets a parameter of "
        "the annotator (scripts/annotate.py --help lists the kinds); may be given several times")
    control_ckpt: tuple[str, ...] = option(
        (), "--control-ckpt", metavar="FILE", words=True, is_repeatable=True, is_file=True,
        default_text="those of the demo model, or of --ckpt",
        help="ControlNets, one for each --control in order, or a folder in which they are found by kind")
    control_mode: Literal["balanced", "prompt", "control"] = option(
        "balanced", "--control-mode",
        help="prompt: follow the prompt more than the map; control: the reverse, guess mode, which controls "
        "only the conditional half of guidance; both weaken shallow residuals")
    guess: bool = option(False, "--guess", help="the same as --control-mode control; works without a prompt")
    control_resolution: int | None = option(
        None, "--control-resolution", metavar="N", low=64, high=4096, default_text="the size of the result",
        help="pixels of the shorter side at which annotators see images")
    annotator_weights: str | None = option(
        None, "--annotator-weights", metavar="FILE", is_file=True, default_text="none",
        help="weights of annotators that are networks, or the folder of such files")
    save_control: bool = option(
        False, "--save-control", changes_image=False,
        help="save the maps too, in DIR/controls")


class Hires:
    SECTION = ("high-resolution images", "two passes; see docs/CONTROL.md")
    hires: float | None = option(
        None, "--hires", metavar="SCALE", read=enlargement, default_text="off",
        help="sample at --H x --W, then enlarge the image by this factor (above 1, up to 4) and add detail "
        "in a second pass")
    hires_strength: float | None = option(
        None, "--hires-strength", metavar="S", low=0, high=1, default_text="0.4; latent: 0.65",
        help="how much the second pass repaints, like --strength of img2img")
    hires_steps: int | None = option(
        None, "--hires-steps", metavar="N", low=1, default_text="--steps",
        help="steps of the second pass; the last S (--hires-strength) of them are run")
    hires_mode: Literal["pixel", "latent"] = option(
        "pixel", "--hires-mode",
        help="enlarge the image, or its latents, which is faster but needs a higher --hires-strength and so "
        "keeps less of the first pass")


class Model:
    SECTION = ("model", "")
    TASKS = ("txt2img", "controlnet")
    """kinds of model (`ldm.checkpoint.identity.TASKS`) that the task can use"""
    DEMO = "emoji"
    """name of the demo model in configs/demo that is used without --ckpt"""

    ENLARGES = False
    """whether the latents have the sides of the input image, which the decoder enlarges"""

    ckpt: str | None = option(
        None, "--ckpt", metavar="FILE", is_file=True, default_text="the small demo model that is included",
        changes_image=False, help="weights: .ckpt, .safetensors, or a diffusers folder")
    config: str | None = option(
        None, "--config", metavar="FILE", is_file=True, default_text="detected from the file",
        help="YAML configuration of the model")
    weights: Literal["auto", "ema", "raw"] = option(
        "auto", "--weights", default_text="{}: the YAML's use_ema",
        help="load the EMA or the raw weights of a file that has both")
    prediction: Literal["auto", "eps", "v"] = option(
        "auto", "--prediction", default_text="{}: from the file's metadata, else detected",
        help="what the UNet predicts")
    allow_nonfinite: bool = option(
        False, "--allow-nonfinite", help="load weights even if some are NaN or infinite")
    vae: str | None = option(
        None, "--vae", metavar="FILE", is_file=True, default_text="the model's",
        help="take the autoencoder from this file or folder")
    sha256: str | None = option(
        None, "--sha256", metavar="HEX", read=sha256_digest, default_text="",
        help="refuse a weights file with another SHA-256")
    device: str = option(
        "auto", "--device", metavar="NAME", changes_image=False, help="auto, cpu, cuda, cuda:N, mps or xpu")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto", "--dtype", read=dtype,
        default_text="{}: bfloat16 where the GPU or CPU has it, else float16 on GPUs and float32 on CPUs and "
        "Macs",
        help="dtype in which the networks compute")
    channels_last: bool = option(
        False, "--channels-last", help="use the channels-last memory format for convolutions",
        changes_image=False)
    latent_channels: int | None = option(
        None, "--C", metavar="N", low=1, default_text="the model's, 4 for SD", help="latent channels")
    latent_factor: int | None = option(
        None, "--f", metavar="N", low=1, default_text="the model's, 8 for SD", help="pixels per latent")


class Output:
    SECTION = ("output", "")
    outdir: str = option(
        "outputs", "--outdir", metavar="DIR", changes_image=False,
        help="output folder: images are saved in DIR/samples, the grid in DIR")
    skip_existing: bool = option(
        False, "--skip-existing", changes_image=False,
        help="make only the images of this command that DIR/samples lacks; their metadata identify them")
    n_rows: int = option(
        0, "--n_rows", metavar="N", low=0, default_text="0: n_samples", changes_image=False,
        help="images per row of the grid")
    no_grid: bool = option(
        False, "--no-grid", changes_image=False, help="save no grid, so that long runs use constant memory")
    watermark: Literal["on", "reference", "off"] = option(
        "on", "--watermark", changes_image=False,
        help="add the invisible watermark SDV2 of the reference scripts; reference: with the bytes of their "
        "package, which damages edges in colour")
    format: Literal["png", "jpg", "webp"] = option(
        "png", "--format", changes_image=False,
        help="file format of images and grids; jpg and webp lose detail, and jpg has no transparency")
    quality: int | None = option(
        None, "--quality", metavar="N", low=1, high=100, default_text="95", changes_image=False,
        help="quality of jpg and webp; at 100 webp keeps every pixel")
    no_metadata: bool = option(
        False, "--no-metadata", changes_image=False, help="save images without prompt and options")


class Messages:
    SECTION = ("messages", "")
    quiet: bool = option(False, "--quiet", changes_image=False, help="print only warnings and errors")
    debug: bool = option(False, "--debug", changes_image=False, help="print details and tracebacks")
