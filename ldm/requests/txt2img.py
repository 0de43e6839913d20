"""Txt2Img: the request."""

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import Control, Controls, Hires, Prompts, PromptSyntax, Sampling, Size


# fmt: off
@request(prompt="a professional photograph of an astronaut riding a triceratops", n_iter=3, n_samples=3,
         outdir="outputs/txt2img-samples")
class Txt2Img(Prompts, Size, Sampling, PromptSyntax, Controls, Hires, Control, Request):
    """Generate images from a prompt."""

    repeat: int = option(
        1, "--repeat", metavar="N", low=1, section=("prompt", ""), help="use each prompt of the file N times")
