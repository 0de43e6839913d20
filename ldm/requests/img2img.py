"""Img2Img: the request."""

from typing import Any, Literal

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import (
    Control,
    Controls,
    Prompts,
    PromptSyntax,
    Sampling,
    image,
    pixels,
    steps,
    strength,
)


# fmt: off
@request(prompt="a painting of a virus monster playing guitar", n_samples=2, outdir="outputs/img2img-samples")
class Img2Img(Prompts, Sampling, PromptSyntax, Controls, Control, Request):
    """Generate images from an image and a prompt."""

    SECTION = ("input image", "")
    init_img: Any = image("the image to start from, of any size")
    strength: float = strength(0.8, "how much is repainted, 0 (nothing) to 1 (nearly all)")
    fit: Literal["exact", "crop", "pad", "stretch"] | None = option(
        None, "--fit", section=("size", "by default the image keeps its size"),
        default_text="exact; crop with --H or --W",
        help="how to fit --init-img to --H x --W, or else to a size that the model supports. crop: cut out "
        "the middle; pad: extend by mirroring; stretch: ignore the aspect ratio, as the reference script "
        "does; exact: keep the size")
    height: int | None = pixels(
        "--H", section=("size", ""), default_text="the image's, or in proportion to --W",
        help="height of the result, any size")
    width: int | None = pixels(
        "--W", section=("size", ""), default_text="the image's, or in proportion to --H",
        help="width of the result, any size")
    steps: int | None = steps("--ddim_steps", "--steps", section=("sampling", ""))
