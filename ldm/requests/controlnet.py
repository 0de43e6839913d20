"""Controlnet: the request."""

from ldm.requests.fields import option, request
from ldm.requests.txt2img import Txt2Img


# fmt: off
@request(prompt="", n_iter=1, n_samples=1, steps=20, outdir="outputs/controlnet-samples")
class Controlnet(Txt2Img):
    """Generate images from a prompt and the maps of one or more images."""

    added_prompt: str = option(
        "", "--added-prompt", "--a-prompt", metavar="TEXT", section=("prompt", ""), default_text="",
        help="text that is added to every prompt after a comma, such as \"best quality, extremely detailed\"")
