"""Controlnet: the request."""

from ldm.requests.fields import request
from ldm.requests.txt2img import Txt2Img


@request(prompt="", n_iter=1, n_samples=1, steps=20, outdir="outputs/controlnet-samples")
class Controlnet(Txt2Img):
    """Generate images from a prompt and the maps of one or more images."""
