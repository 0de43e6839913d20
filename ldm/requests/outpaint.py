"""Outpaint: the request."""

from typing import Any

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import MAX_SIDE, Controls, Prompts, PromptSyntax, Resume, Sampling, image, strength


# fmt: off
@request(steps=45, scale=10.0, eta=1.0, outdir="outputs/outpaint-samples")
class Outpaint(Prompts, Sampling, PromptSyntax, Controls, Resume, Request):
    """Extend an image at its sides; its own pixels stay as they are, byte for byte."""

    TASKS = ("inpaint", "txt2img", "controlnet")
    DEMO = "emoji_inpaint"
    SECTION = ("image to extend", "its own pixels stay as they are, byte for byte")
    init_img: Any = image("the image to extend, of any size")
    left: int = option(0, "--left", metavar="PIXELS", low=0, high=MAX_SIDE, help="pixels to add left")
    right: int = option(0, "--right", metavar="PIXELS", low=0, high=MAX_SIDE, help="pixels to add right")
    up: int = option(0, "--up", metavar="PIXELS", low=0, high=MAX_SIDE, help="pixels to add above")
    down: int = option(0, "--down", metavar="PIXELS", low=0, high=MAX_SIDE, help="pixels to add below")
    window: int | None = option(
        None, "--window", metavar="PIXELS", low=16, high=MAX_SIDE,
        default_text="the size that the model was trained at",
        help="largest side of the windows in which the image is extended; at most half of a window is new")
    strength: float = strength(
        1.0, "how much of the fill (the border's colours, continued outwards) is repainted, 0 to 1 (all)")
