"""Sample: the request."""

from ldm.requests.base import Request
from ldm.requests.fields import request
from ldm.requests.groups import Control, Negative, Sampling, Size, pixels


@request(scale=1.0, n_samples=10, outdir="outputs/sample-samples")
class Sample(Negative, Size, Sampling, Control, Request):
    """Generate images without a prompt: with an unconditional model, or with the empty prompt."""

    TASKS = ("unconditional", "txt2img")
    height: int | None = pixels("--H", help="height of an image, any size", default_text="the model's own")
    width: int | None = pixels("--W", help="width of an image, any size", default_text="the model's own")
