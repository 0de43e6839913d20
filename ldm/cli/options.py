"""Groups of flags that several commands share: the published names and defaults, and ours.

A default of None means "the model's own" and is resolved once the model is known.
"""

import argparse
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from ldm.prompts.combinations import MAX_PROMPTS

if TYPE_CHECKING:
    from ldm.cli.app import Parser

MAX_SIDE = 16_384
MAX_SEED = 2**32 - 1


class ListSamplers(argparse.Action):
    """Print the table of samplers and exit."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from ldm.samplers import sampler_table

        print(sampler_table())
        parser.exit()


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return an argparse type for whole numbers from `low` to `high`."""
    expected = f"a whole number from {low}" + (" up" if high is None else f" to {high}")

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return convert


def number(low: float = -math.inf, high: float = math.inf) -> Callable[[str], float]:
    """Return an argparse type for finite numbers from `low` to `high`."""
    bounds = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g}"
    expected = f"a number{bounds}" + (f" to {high:g}" if high < math.inf else " up" if bounds else "")

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}")
        return value

    return convert


def seed(text: str) -> int:
    """Return a seed; an argparse type."""
    try:
        return integer(0, MAX_SEED)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; none of them is random: choose any, such as 7") from None


def prompt(parser: argparse.ArgumentParser, default: str, repeat: bool = False) -> None:
    """--prompt, --from-file, --negative-prompt."""
    group = parser.add_argument_group("what to make")
    group.add_argument(
        "--prompt",
        nargs="?",
        default=default,
        help=f"the text to render (default: {default.replace('%', '%%') or 'the empty one'})",
    )
    group.add_argument(
        "--negative-prompt", default="", metavar="TEXT", help="what the picture should not show"
    )
    group.add_argument(
        "--from-file",
        metavar="FILE",
        help="read prompts from this file, one a line; an empty line is a prompt too, the empty one",
    )
    if repeat:
        group.add_argument(
            "--repeat",
            type=integer(1),
            default=1,
            metavar="N",
            help="use each prompt of the file N times in a row",
        )


class Combinations(argparse.Action):
    """Take `all`, or `random N`; the value is that, or ("random", N)."""

    def __call__(self, _: argparse.ArgumentParser, args: argparse.Namespace, words: list[str], *__) -> None:
        if words[:1] == ["random"] and len(words) == 2:
            try:
                setattr(args, self.dest, ("random", integer(1, MAX_PROMPTS)(words[1])))
            except argparse.ArgumentTypeError as error:
                raise argparse.ArgumentError(self, str(error)) from None
        elif words == ["all"]:
            setattr(args, self.dest, "all")
        else:
            raise argparse.ArgumentError(self, f"got {' '.join(words)!r}, expected all, or random N")


def prompt_syntax(parser: argparse.ArgumentParser) -> None:
    """--prompt-syntax, --clip-skip, --long-prompts, --combinations, --wildcards."""
    group = parser.add_argument_group("how prompts are read", "see docs/PROMPTS.md")
    group.add_argument(
        "--prompt-syntax",
        choices=("plain", "a1111", "compel"),
        default="plain",
        help="weights and breaks: a1111 reads (x:1.2), ((x)), [x], BREAK; compel reads x++, (x)1.2, .and(); "
        "plain has none (default: %(default)s)",
    )
    group.add_argument(
        "--clip-skip",
        type=integer(1),
        metavar="N",
        help="use the text encoder's states before its last N - 1 blocks "
        "(default: the model's own, 1 for SD 1.x, 2 for SD 2.x)",
    )
    group.add_argument(
        "--long-prompts",
        choices=("chunk", "cut"),
        default="chunk",
        help="tokens beyond what the text encoder takes, 75 for SD, are encoded in further parts, "
        "or cut off as published (default: %(default)s)",
    )
    group.add_argument(
        "--combinations",
        action=Combinations,
        nargs="+",
        metavar=("all|random", "N"),
        help="read {red|green} and __colour__ in prompts: a picture of every combination, or of N drawn by "
        "--seed (default: they are text)",
    )
    group.add_argument(
        "--wildcards", metavar="DIR", help="where --combinations looks for colour.txt, one value a line"
    )


def no_prompt(parser: argparse.ArgumentParser) -> None:
    """--negative-prompt, and for the rest of `prompt` and `prompt_syntax` what makes one batch of ""."""
    parser.set_defaults(
        prompt="", from_file=None, combinations=None, wildcards=None,
        prompt_syntax="plain", clip_skip=None, long_prompts="chunk",
    )  # fmt: skip
    parser.add_argument_group("what to make").add_argument(
        "--negative-prompt",
        default="",
        metavar="TEXT",
        help="what the pictures should not show, with a --scale above 1: of models that know text",
    )


def size(parser: argparse.ArgumentParser, default: str = "512; demo model: its own") -> None:
    """--H, --W, in pixels; `default` says what stands for None."""
    group = parser.add_argument_group("size")
    for flag, what in (("--H", "height"), ("--W", "width")):
        group.add_argument(
            flag,
            type=integer(1, MAX_SIDE),
            metavar="PIXELS",
            help=f"{what} of a picture, any size (default: {default})",
        )


def init_image(parser: argparse.ArgumentParser) -> None:
    """--init-img, --strength."""
    group = parser.add_argument_group("picture to start from")
    group.add_argument("--init-img", nargs="?", metavar="FILE", help="the picture to start from, of any size")
    group.add_argument(
        "--strength",
        type=number(0, 1),
        default=0.8,
        metavar="S",
        help="how much is repainted, 0 (nothing) to 1 (nearly all) (default: %(default)s)",
    )


def masked_picture(parser: argparse.ArgumentParser) -> None:
    """--init-img, --strength, --mask and what becomes of it."""
    group = parser.add_argument_group("picture to change")
    group.add_argument(
        "--init-img",
        nargs="?",
        metavar="FILE",
        help="the picture, of any size; without --mask, what is transparent in it is painted",
    )
    group.add_argument(
        "--strength",
        type=number(0, 1),
        default=1.0,
        metavar="S",
        help="how much of what was there is repainted, 0 (nothing) to 1 (all) (default: %(default)s)",
    )
    group = parser.add_argument_group("mask", "all pixels outside it stay as they are, byte for byte")
    group.add_argument(
        "--mask",
        nargs="?",
        metavar="FILE",
        help="a picture of the same size: white is painted, black stays, grey is a mixture",
    )
    group.add_argument("--invert-mask", action="store_true", help="black is painted, white stays")
    group.add_argument(
        "--mask-grow",
        type=integer(-1024, 1024),
        default=0,
        metavar="PIXELS",
        help="move the mask's border outwards, below 0 inwards (default: 0)",
    )
    group.add_argument(
        "--mask-blur",
        type=integer(0, 1024),
        default=0,
        metavar="PIXELS",
        help="fade the paint out over this width, inside the mask; to fade it out around what is to change, "
        "--mask-grow by as much (default: 0)",
    )
    group.add_argument(
        "--only-masked",
        type=integer(0, MAX_SIDE),
        metavar="PAD",
        help="paint the mask and PAD pixels around it at the model's own size, for small parts of large "
        "pictures (default: the whole picture at its own size)",
    )
    group.add_argument(
        "--no-match-border",
        action="store_true",
        help="leave the paint the colours that the autoencoder gives it (default: they are drawn to those "
        "beside the mask)",
    )
    group.add_argument(
        "--raw", action="store_true", help="the whole picture as the model gives it, as published"
    )


def grown_picture(parser: argparse.ArgumentParser) -> None:
    """--init-img, --left, --right, --up, --down, --window, --strength."""
    group = parser.add_argument_group("picture to enlarge at its sides", "its own pixels stay, byte for byte")
    group.add_argument("--init-img", nargs="?", metavar="FILE", help="the picture, of any size")
    sides = {"left": "on the left", "right": "on the right", "up": "above", "down": "below"}
    for side, where in sides.items():
        group.add_argument(
            f"--{side}",
            type=integer(0, MAX_SIDE),
            default=0,
            metavar="PIXELS",
            help=f"how much to add {where} (default: 0)",
        )
    group.add_argument(
        "--window",
        type=integer(16, MAX_SIDE),
        metavar="PIXELS",
        help="the largest side of what the model sees at once; half of it at most is new "
        "(default: the size that the model was trained at)",
    )
    group.add_argument(
        "--strength",
        type=number(0, 1),
        default=1.0,
        metavar="S",
        help="how much of the fill, the border's colours drawn out, is painted over, 0 (nothing) to 1 (all) "
        "(default: %(default)s)",
    )


def depth_map(parser: argparse.ArgumentParser) -> None:
    """--init-img, --strength; --depth, --depth-from, --depth-invert, --depth-ckpt, --save-depth; --H, --W."""
    group = parser.add_argument_group("picture to start from")
    group.add_argument(
        "--init-img", nargs="?", metavar="FILE", help="the picture, of any size; not needed with --depth"
    )
    group.add_argument(
        "--strength",
        type=number(0, 1),
        metavar="S",
        help="how much is repainted: 0 nothing, 1 all, so that of the picture its depth alone counts "
        "(default: 0.9, as published; 1 without --init-img)",
    )
    group = parser.add_argument_group("depth", "by the model's own network unless said otherwise")
    group.add_argument(
        "--depth",
        metavar="FILE",
        help="a depth map in which larger is nearer, of any range: PNG or TIFF of 8 or 16 bits, EXR, NPY, "
        "NPZ or PFM. NaN and infinity are unknown and filled in",
    )
    group.add_argument(
        "--depth-invert",
        nargs="?",
        const="flip",
        choices=("flip", "reciprocal"),
        help="in FILE larger is farther. flip: turn the range around; reciprocal: 1 / value, for distances "
        "from the camera (default: not; without a word: flip)",
    )
    group.add_argument(
        "--depth-from",
        choices=("network", "alpha"),
        help="where depth comes from without --depth. alpha: the outline of a transparent picture, inflated, "
        "as the demo model is trained (default: network)",
    )
    group.add_argument(
        "--depth-ckpt",
        metavar="FILE",
        help="the depth network's weights, dpt_hybrid-midas-501f0c75.pt, for models that come without, or a "
        "model that holds them (default: the model's own)",
    )
    group.add_argument(
        "--save-depth",
        action="store_true",
        help="keep the map that was used, 16 bits, nearest white, DIR/depth/00000.png; --depth takes it",
    )
    for flag, what in (("--H", "height"), ("--W", "width")):
        group.add_argument(
            flag,
            type=integer(1, MAX_SIDE),
            metavar="PIXELS",
            help=f"{what} of the result without --init-img (default: the map's, or by the other of the two)",
        )


def small_picture(parser: argparse.ArgumentParser) -> None:
    """--init-img, --noise-level, --faithful."""
    group = parser.add_argument_group("picture to enlarge")
    group.add_argument("--init-img", nargs="?", metavar="FILE", help="the small picture, of any size")
    group.add_argument(
        "--noise-level",
        type=integer(0),
        metavar="N",
        help="noise on the small picture, from 0 to the model's highest, 350 as published: more lets the "
        "model invent more, against blur and artefacts (default: 20)",
    )
    group.add_argument(
        "--faithful",
        choices=("on", "off"),
        help="make the result agree with the small picture, colours and all, so that only detail is invented "
        "(default: off, as published; on with tiles and with the demo model)",
    )


def tiles(parser: argparse.ArgumentParser) -> None:
    """--max-memory, --tile, --overlap."""
    group = parser.add_argument_group("memory", "what does not fit at once is made in tiles that are blended")
    group.add_argument(
        "--max-memory",
        type=size_in_bytes,
        metavar="SIZE",
        help="stay within so much, such as 8GB or 6.5GiB, of the process on CPUs, of the device on GPUs; or "
        "auto: what is free, so that pictures may differ; --tile fixes what is done (default: auto)",
    )
    group.add_argument(
        "--tile",
        type=integer(1),
        metavar="N",
        help="tiles of N pixels of the small picture (default: the whole, or the largest that fit)",
    )
    group.add_argument(
        "--overlap",
        type=integer(0),
        metavar="N",
        help="how far such tiles overlap (default: a quarter of --tile)",
    )


def size_in_bytes(text: str) -> int | None:
    """Return 8GB, 6.5GiB or 900M as bytes, auto as None; an argparse type."""
    if text == "auto":
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", text.strip().lower())
    if found is None or not float(found[1]):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected auto or a size such as 8GB or 900MB")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))


def image_mix(parser: argparse.ArgumentParser) -> None:
    """--init-img, --image-weights, --noise-level, --mix-noise-level: several pictures."""
    group = parser.add_argument_group("pictures to vary")
    group.add_argument(
        "--init-img",
        nargs="+",
        default=[],
        metavar="FILE",
        help="one picture or more, of any size; each is seen whole, squeezed to a square",
    )
    group.add_argument(
        "--image-weights",
        nargs="+",
        type=number(),
        metavar="W",
        help="how much of each picture, in their order; negative: away from it (default: all alike)",
    )
    group.add_argument(
        "--noise-level",
        nargs="+",
        type=integer(0, 999),
        default=[0],
        metavar="N",
        help="how freely, 0 (near the picture) to 999 (nothing of it): one for all pictures, or one for each "
        "(default: 0)",
    )
    group.add_argument(
        "--mix-noise-level",
        type=level_or_off,
        metavar="N",
        help="of the mix of several pictures, once more, 0 to 999, or off (default: 50, as published)",
    )


def level_or_off(text: str) -> int | str:
    """Return a noise level, or "off"; an argparse type."""
    try:
        return text if text == "off" else integer(0, 999)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or off") from None


def fit(parser: argparse.ArgumentParser) -> None:
    """--fit, and --H and --W of the result."""
    group = parser.add_argument_group("size", "without these the picture keeps its size, whatever that is")
    group.add_argument(
        "--fit",
        choices=("exact", "crop", "pad", "stretch"),
        help="how --init-img comes to --H x --W, or else to a size that the model takes. crop: cut out its "
        "middle; pad: mirror it outwards; stretch: ignore its shape, as the published script does; exact: as "
        "it is (default: exact; crop with --H or --W)",
    )
    for flag, what in (("--H", "height"), ("--W", "width")):
        group.add_argument(
            flag,
            type=integer(1, MAX_SIDE),
            metavar="PIXELS",
            help=f"{what} of the result, any size (default: the picture's own, or by the other of the two)",
        )


def sampling(
    parser: "Parser",
    steps_flag: str,
    n_iter: int,
    n_samples: int,
    scale: float = 9.0,
    eta: float = 0.0,
    demo_scale: float = 4.0,
    demo_steps: int | None = None,
) -> None:
    """Steps, sampler, eta, scale, seed, counts.

    `eta` is DDIM's where no flag says another; `demo_scale` and `demo_steps` are what suits the demonstration
    model, None the same as any other.
    """
    own = {"scale": demo_scale, "steps": demo_steps}
    own = {name: value for name, value in own.items() if value is not None}
    parser.set_defaults(usual_eta=eta, demo_defaults=own)
    group = parser.add_argument_group("sampling")
    aliases = {"--steps", "--ddim_steps"} - {steps_flag}
    parser.aliases |= aliases
    group.add_argument(
        steps_flag,
        *aliases,
        dest="steps",
        type=integer(1),
        default=50,
        metavar="N",
        help="sampling steps (default: %(default)s"
        + (f"; demo model: {demo_steps})" if demo_steps else ")"),
    )
    group.add_argument(
        "--sampler",
        metavar="NAME",
        help=f"see --list-samplers; exactly {steps_flag} evaluations (default: ddim)",
    )
    group.add_argument(
        "--schedule",
        metavar="NAME",
        help="where the steps are put: uniform, quad, trailing, linspace, karras or exponential "
        "(default: the sampler's own)",
    )
    group.add_argument(
        "--zero-snr",
        action="store_true",
        help="start from pure noise by a rescaled noise schedule: models that predict v reach true black and "
        "white; best with --schedule trailing and --guidance-rescale 0.7",
    )
    group.add_argument("--list-samplers", action=ListSamplers, help="print the table of samplers and exit")
    group.add_argument(
        "--ddim_eta",
        type=number(0),
        default=eta,
        metavar="ETA",
        help="DDIM eta, 0 is deterministic (default: %(default)s)",
    )
    group.add_argument(
        "--eta",
        type=number(0),
        metavar="ETA",
        help="noise added by the steps of any sampler that adds some (default: the sampler's own)",
    )
    group.add_argument(
        "--scale",
        type=number(),
        default=scale,
        metavar="W",
        help="guidance: higher follows the prompt more closely, 1 is off (default: %(default)s; demo model: "
        f"{demo_scale:g})",
    )
    group.add_argument(
        "--seed",
        type=seed,
        default=42,
        metavar="N",
        help="the same seed and flags give the same pictures (default: %(default)s)",
    )
    group.add_argument(
        "--n_iter",
        type=integer(1),
        default=n_iter,
        metavar="N",
        help="go through all prompts this often (default: %(default)s)",
    )
    group.add_argument(
        "--n_samples",
        type=integer(1),
        default=n_samples,
        metavar="N",
        help="pictures made together, the batch size (default: %(default)s)",
    )
    group.add_argument(
        "--fixed_code", action="store_true", help="use the same start noise in every iteration"
    )


def guidance(parser: argparse.ArgumentParser) -> None:
    """--guidance-rescale, --guidance-interval, --dynamic-threshold: all off by default."""
    group = parser.add_argument_group("guidance", "changes of what --scale does; see docs/GUIDANCE.md")
    group.add_argument(
        "--guidance-rescale",
        type=number(0, 1),
        default=0.0,
        metavar="PHI",
        help="pull the contrast that guidance adds back to what it is without, 0 (not at all) to 1; "
        "0.7 is usual, above all with models that predict v (default: 0)",
    )
    group.add_argument(
        "--guidance-interval",
        type=interval,
        metavar="LOW,HIGH",
        help="guide only at these training times, t / 999: 0 is clean, the end of a run, 1 noise, its "
        "start; other steps cost half. In SD's schedule 0.07, 0.35, 0.67, 0.81 and 1 are the sigmas 0.28, 1, "
        "2.9, 5.4 and 14.6 (default: 0,1)",
    )
    group.add_argument(
        "--dynamic-threshold",
        type=percentile,
        metavar="P",
        help="bring x_0 back into -4..4, the range of latents: scale it down by its percentile P, above 0 to "
        "1, and clip the rest; 0.995 is usual, against the burnt look of a high --scale (default: off)",
    )


def interval(text: str) -> tuple[float, float]:
    """Return LOW,HIGH as two numbers; an argparse type."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not 0 <= low < high <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected LOW,HIGH with 0 <= LOW < HIGH <= 1")
    return low, high


def percentile(text: str) -> float:
    """Return a percentile as a part of 1; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0, to 1, such as 0.995")
    return value


def randomness(parser: argparse.ArgumentParser) -> None:
    """--rng, --exact."""
    group = parser.add_argument_group("random numbers", "see docs/RANDOMNESS.md")
    group.add_argument(
        "--rng",
        default="reference",
        choices=("reference", "per-image", "gpu-philox"),
        help="reference: the published draws, for old pictures. per-image: picture k of the run is the one "
        "that seed + k gives alone, in any batch, on any device. gpu-philox: the same with the numbers that "
        "CUDA draws, for seeds from other tools (default: %(default)s)",
    )
    group.add_argument(
        "--exact",
        action="store_true",
        help="give the networks one picture at a time: with --rng per-image every bit of a picture is then "
        "independent of --n_samples (default: the last bits differ)",
    )


def control(parser: argparse.ArgumentParser, task: str, keeps_latents: bool = True) -> None:
    """--preview-every, --save-latents, --latents; `task` is what a picture remembers it was made by.

    `keeps_latents`: a finished picture has latents of its own; one made in several parts has not.
    """
    parser.set_defaults(task=task)
    group = parser.add_argument_group("control", "and Ctrl-C, which saves where it stands: docs/CONTROL.md")
    group.add_argument(
        "--preview-every",
        type=integer(1),
        metavar="N",
        help="every N steps a small picture of what becomes of the batch, DIR/preview.png (default: none)",
    )
    if keeps_latents:
        group.add_argument(
            "--save-latents",
            action="store_true",
            help="keep each picture's latents beside it, DIR/samples/00000.latents.safetensors",
        )
    also = {
        "txt2img": "; of a finished picture, to decode; else the noise to start from",
        "unclip": "; else the noise to start from",
        "upscale": "; else the noise to start from",
        "img2img": "; else to start from in place of --init-img",
        "sample": "; of a finished picture, to decode; else the noise to start from",
    }
    group.add_argument(
        "--latents",
        metavar="FILE",
        help="latents of a stopped run, to go on with its own flags" + also.get(task, ""),
    )


def hires(parser: argparse.ArgumentParser) -> None:
    """--hires, --hires-strength, --hires-steps, --hires-mode."""
    group = parser.add_argument_group("larger than the model was trained at", "see docs/CONTROL.md")
    group.add_argument(
        "--hires",
        type=enlargement,
        metavar="SCALE",
        help="make the picture at --H x --W, then enlarge it, above 1 to 4 times, and paint the detail in",
    )
    group.add_argument(
        "--hires-strength",
        type=number(0, 1),
        metavar="S",
        help="how much the second pass repaints, as --strength of img2img (default: 0.4; latent: 0.65)",
    )
    group.add_argument(
        "--hires-steps",
        type=integer(1),
        metavar="N",
        help="of which the second pass takes S (default: --steps)",
    )
    group.add_argument(
        "--hires-mode",
        choices=("pixel", "latent"),
        default="pixel",
        help="enlarge the picture, or its latents: faster, but needs more --hires-strength and so keeps less "
        "(default: %(default)s)",
    )


def enlargement(text: str) -> float:
    """Return how many times larger; an argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 < value <= 4:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 1, to 4, such as 1.5")
    return value


def sha256_digest(text: str) -> str:
    """Return a SHA-256 as hashing gives it; an argparse type."""
    digest = text.strip().lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected the 64 hexadecimal digits of a SHA-256")
    return digest


def model(
    parser: argparse.ArgumentParser, tasks: tuple[str, ...] = ("txt2img",), demo: str = "emoji"
) -> None:
    """--ckpt, --config, --vae, how the weights are read, --device, --dtype, --precision, and --C and --f.

    `tasks` are the kinds of model (`ldm.checkpoint.identity.TASKS`) that the script has inputs for; `demo` is
    the name in configs/demo of the model that is used without --ckpt.
    """
    parser.set_defaults(tasks=tasks, demo=demo)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--ckpt",
        metavar="FILE",
        help="weights: .ckpt, .safetensors, or a diffusers folder (default: the small demo model that comes "
        "with this)",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        help="YAML that describes the model (default: the published one, picked by what the file is)",
    )
    group.add_argument(
        "--weights",
        default="auto",
        choices=("auto", "ema", "raw"),
        help="which of a file's two copies: averaged or raw (default: %(default)s: as the YAML's use_ema)",
    )
    group.add_argument(
        "--prediction",
        default="auto",
        choices=("auto", "eps", "v"),
        help="what the network predicts (default: %(default)s: what the file says, else one step tells)",
    )
    group.add_argument(
        "--allow-nonfinite", action="store_true", help="load weights that hold NaN or infinity all the same"
    )
    group.add_argument(
        "--vae", metavar="FILE", help="take the autoencoder from this file or folder (default: the model's)"
    )
    group.add_argument(
        "--sha256", type=sha256_digest, metavar="HEX", help="stop unless the weights file has this SHA-256"
    )
    group.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:N, mps or xpu (default: %(default)s)",
    )
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "float16", "bfloat16"),
        help="what the networks compute in (default: %(default)s: bfloat16 on GPUs that have it, float16 on "
        "others, float32 on CPUs and Macs)",
    )
    group.add_argument(
        "--precision",
        choices=("full", "autocast"),
        default="autocast",
        help="full computes in float32 (default: %(default)s: see --dtype)",
    )
    group.add_argument(
        "--C", type=integer(1), metavar="N", help="latent channels (default: the model's, 4 for SD)"
    )
    group.add_argument(
        "--f", type=integer(1), metavar="N", help="pixels a latent (default: the model's, 8 for SD)"
    )


def intel(parser: argparse.ArgumentParser) -> None:
    """--torchscript, --ipex, --bf16."""
    group = parser.add_argument_group("published for Intel processors")
    group.add_argument(
        "--bf16", action="store_true", help="the same as --dtype bfloat16; overrides --precision full"
    )
    group.add_argument("--torchscript", action="store_true", help="accepted; tracing is no longer needed")
    group.add_argument(
        "--ipex",
        action="store_true",
        help="accepted; the extension is no longer needed, convolutions run channels-last",
    )


def output(parser: argparse.ArgumentParser, outdir: str) -> None:
    """--outdir, --n_rows, --no-grid, --watermark, --no-metadata."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--outdir",
        nargs="?",
        default=outdir,
        metavar="DIR",
        help="pictures go to DIR/samples, the grid to DIR (default: %(default)s)",
    )
    group.add_argument(
        "--n_rows",
        type=integer(0),
        default=0,
        metavar="N",
        help="pictures in a row of the grid (default: 0: n_samples)",
    )
    group.add_argument(
        "--no-grid", action="store_true", help="save no grid; long runs then need no more memory"
    )
    group.add_argument(
        "--watermark",
        choices=("on", "off"),
        default="on",
        help="the invisible mark SDV2 of the published scripts (default: %(default)s)",
    )
    group.add_argument(
        "--no-metadata", action="store_true", help="save PNG files without prompt and settings"
    )


def common(parser: argparse.ArgumentParser) -> None:
    """--quiet, --debug."""
    group = parser.add_argument_group("messages")
    group.add_argument("--quiet", action="store_true", help="only warnings and errors")
    group.add_argument("--debug", action="store_true", help="details, and a traceback for errors")
