"""Inpaint: the request."""

from typing import Any

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import MAX_SIDE, Control, Controls, Prompts, PromptSyntax, Sampling, image, strength


# fmt: off
@request(steps=45, scale=10.0, eta=1.0, n_samples=4, outdir="outputs/inpaint-samples")
class Inpaint(Prompts, Sampling, PromptSyntax, Controls, Control, Request):
    """Repaint the masked part of an image; every other pixel stays as it is, byte for byte."""

    TASKS = ("inpaint", "txt2img", "controlnet")
    DEMO = "emoji_inpaint"
    SECTION = ("mask", "pixels outside the mask stay as they are, byte for byte")
    init_img: Any = image(
        "the image to repaint, of any size; without --mask its transparent part is repainted",
        section=("input image", ""))
    strength: float = strength(
        1.0, "how much of the original is repainted, 0 (nothing) to 1 (all)", section=("input image", ""))
    mask: Any = option(
        None, "--mask", metavar="FILE", is_file=True, default_text="",
        help="mask image of the same size: white is repainted, black is kept, grey is a mixture")
    invert_mask: bool = option(False, "--invert-mask", help="repaint black and keep white")
    mask_grow: int = option(
        0, "--mask-grow", metavar="PIXELS", low=-1024, high=1024,
        help="move the border of the mask outwards, or inwards if negative")
    mask_blur: int = option(
        0, "--mask-blur", metavar="PIXELS", low=0, high=1024,
        help="feather the mask inwards over this many pixels; add --mask-grow N to feather outwards instead")
    only_masked: int | None = option(
        None, "--only-masked", metavar="PAD", low=0, high=MAX_SIDE,
        default_text="the whole image at its own size",
        help="crop the mask with PAD pixels around it and repaint it at the model's own size, for small "
        "parts of large images")
    no_match_border: bool = option(
        False, "--no-match-border", default_text="the colours are matched along the border of the mask",
        help="keep the colours as the autoencoder decodes them")
    raw: bool = option(
        False, "--raw",
        help="output the decoded image without pasting the original back (reference behaviour)")
