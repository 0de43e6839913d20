"""Unclip: the request."""

from typing import Any

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import Control, Controls, Prompts, PromptSyntax, Sampling, Size, image, pixels
from ldm.requests.readers import level_or_off


# fmt: off
@request(steps=20, scale=10.0, n_samples=2, outdir="outputs/unclip-samples")
class Unclip(Prompts, Size, Sampling, PromptSyntax, Controls, Control, Request):
    """Generate variations of an image, or of a mix of several, guided by a prompt."""

    TASKS = ("unclip-h", "unclip-l")
    DEMO = "emoji_unclip"
    SECTION = ("input images", "")
    height: int | None = pixels("--H", help="height of an image, any size", default_text="768; demo: 128")
    width: int | None = pixels("--W", help="width of an image, any size", default_text="768; demo: 128")
    init_img: tuple[Any, ...] = image(
        "the image to vary, or several, of any size; each is resized to a square for the image encoder",
        default=(), words=True, default_text="")
    image_weights: tuple[float, ...] | None = option(
        None, "--image-weights", metavar="W", words=True, default_text="all equal",
        help="weight of each image, in order; a negative weight leads away from the image")
    noise_level: tuple[int, ...] = option(
        (0,), "--noise-level", metavar="N", words=True, low=0, high=999, default_text="0",
        help="noise added to the image embedding: 0 stays close to the image, 999 ignores it; one value for "
        "all images, or one for each")
    mix_noise_level: int | str | None = option(
        None, "--mix-noise-level", metavar="N", read=level_or_off, default_text="50, as the reference",
        help="noise added to the mix of several images, 0 to 999, or off")
