"""Upscale: the request."""

from typing import Any, Literal

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import Control, Prompts, PromptSyntax, Sampling, image


# fmt: off
@request(prompt="a high quality professional photograph", steps=75, scale=10.0,
         outdir="outputs/upscale-samples")
class Upscale(Prompts, Sampling, PromptSyntax, Control, Request):
    """Enlarge an image four times, guided by a prompt."""

    TASKS = ("upscale",)
    DEMO = "emoji_upscale"
    ENLARGES = True
    SECTION = ("image to enlarge", "")
    init_img: Any = image("the image to enlarge, of any size")
    noise_level: int | None = option(
        None, "--noise-level", metavar="N", low=0, default_text="20",
        help="noise added to the small image, 0 to the model's maximum (350 in the reference): with more "
        "noise the model invents more detail and copies less blur and fewer artefacts")
    faithful: Literal["on", "off"] | None = option(
        None, "--faithful", default_text="off, as the reference; on with tiles and with the demo model",
        help="make the result equal the small image when it is reduced again, so that only detail is "
        "invented")
