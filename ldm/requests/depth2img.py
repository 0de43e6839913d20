"""Depth2Img: the request."""

from typing import Any, Literal

from ldm.requests.base import Request
from ldm.requests.fields import option, request
from ldm.requests.groups import Control, Controls, Prompts, PromptSyntax, Sampling, image, pixels, strength

NO_DEPTH = (
    "this model has no network that estimates depth: give a map (--depth FILE, --depth-from alpha), or the "
    "network's weights (--depth-ckpt dpt_hybrid-midas-501f0c75.pt)"
)


# fmt: off
@request(outdir="outputs/depth2img-samples")
class Depth2Img(Prompts, Sampling, PromptSyntax, Controls, Control, Request):
    """Generate images with a given depth: that of an image, or a depth map."""

    TASKS = ("depth",)
    DEMO = "emoji_depth"
    SECTION = ("depth", "by default the model's depth network estimates it from the image")
    init_img: Any = image("the image, of any size; optional with --depth", section=("input image", ""))
    strength: float | None = strength(
        None, "how much is repainted, 0 (nothing) to 1 (all, so that only the depth of the image is used)",
        section=("input image", ""), default_text="0.9; 1 without --init-img")
    depth: Any = option(
        None, "--depth", metavar="FILE", is_file=True, default_text="",
        help="depth map of any range in which larger is nearer: PNG or TIFF with 8 or 16 bits, EXR, NPY, NPZ "
        "or PFM; NaN and infinity are unknown and are filled in")
    depth_invert: Literal["flip", "reciprocal"] | None = option(
        None, "--depth-invert", bare="flip", default_text="off; without a word: flip",
        help="convert a depth map in which larger is farther. flip: reverse the range; reciprocal: 1 / "
        "value, for distances from the camera")
    depth_from: Literal["network", "alpha"] | None = option(
        None, "--depth-from", default_text="network",
        help="source of the depth without --depth. alpha: the outline of a transparent image, inflated, as "
        "the demo model was trained")
    depth_ckpt: str | None = option(
        None, "--depth-ckpt", metavar="FILE", is_file=True, default_text="the model's own",
        help="weights of the depth network, dpt_hybrid-midas-501f0c75.pt, for models without one, or another "
        "model that contains them")
    save_depth: bool = option(
        False, "--save-depth", changes_image=False,
        help="save the depth map that was used as DIR/depth/00000.png, with 16 bits and nearest white, for "
        "--depth")
    height: int | None = pixels(
        "--H", help="height of the result without --init-img",
        default_text="the map's, or in proportion to --W")
    width: int | None = pixels(
        "--W", help="width of the result without --init-img",
        default_text="the map's, or in proportion to --H")
