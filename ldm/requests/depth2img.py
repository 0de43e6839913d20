"""Depth2Img: the request."""

from typing import Any, Literal

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import Control, Prompts, PromptSyntax, Sampling, image, pixels, strength


@request(outdir="outputs/depth2img-samples")
class Depth2Img(Prompts, Sampling, PromptSyntax, Control, Request):
    """Generate images of a given depth: that of an image, or of a depth map."""

    TASKS = ("depth",)
    DEMO = "emoji_depth"
    SECTION = ("depth", "estimated by the model's own network by default")
    init_img: Any = image("the image, of any size; optional with --depth", section=("input image", ""))
    strength: float | None = strength(
        None, "how much is repainted: 0 nothing, 1 all, so that only the depth of the image counts",
        section=("input image", ""), default_text="0.9; 1 without --init-img",
    )  # fmt: skip
    depth: Any = option(
        None, "--depth", metavar="FILE", is_file=True, default_text="",
        help="a depth map in which larger is nearer, of any range: PNG or TIFF of 8 or 16 bits, EXR, NPY, "
        "NPZ or PFM; NaN and infinity are unknown and filled in",
    )  # fmt: skip
    depth_invert: Literal["flip", "reciprocal"] | None = option(
        None, "--depth-invert", bare="flip", default_text="off; without a word: flip",
        help="in FILE larger is farther. flip: reverse the range; reciprocal: 1 / value, for distances from "
        "the camera",
    )  # fmt: skip
    depth_from: Literal["network", "alpha"] | None = option(
        None, "--depth-from", default_text="network",
        help="where depth comes from without --depth. alpha: the outline of a transparent image, inflated, "
        "as the demo model was trained",
    )  # fmt: skip
    depth_ckpt: str | None = option(
        None, "--depth-ckpt", metavar="FILE", is_file=True, default_text="the model's own",
        help="weights of the depth network, dpt_hybrid-midas-501f0c75.pt, for models that come without it, "
        "or a model that contains them",
    )  # fmt: skip
    save_depth: bool = option(
        False, "--save-depth", changes_image=False,
        help="save the depth map that was used, 16 bits, nearest white, as DIR/depth/00000.png; --depth "
        "reads it",
    )  # fmt: skip
    height: int | None = pixels(
        "--H", help="height of the result without --init-img",
        default_text="the map's, or in proportion to --W",
    )  # fmt: skip
    width: int | None = pixels(
        "--W", help="width of the result without --init-img",
        default_text="the map's, or in proportion to --H",
    )  # fmt: skip
