"""Fit the linear map from latents to colours that previews of the demo model use.

    python demo/fit_preview.py

Least squares from the latents of images that the model itself makes to those images, 8 times smaller. The
few numbers go to configs/demo/emoji_preview.json, beside the model's YAML, where --preview-every looks for
them.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a clone works without being installed

from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser, add_messages, argument_type  # noqa: E402
from ldm.requests.fields import integer  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.imaging.preview import LatentToRGB

PROMPTS = (
    "3d emoji of a cat, blue background",
    "a red apple next to a cat",
    "flat emoji of a green tree, white background",
    "3d emoji of a yellow smiling face",
    "flat emoji of a purple heart, black background",
    "3d emoji of an orange car, green background",
    "a blue house",
    "flat emoji of a pink flower, yellow background",
)


def fit_map(latents: "Tensor", images: "Tensor") -> "tuple[LatentToRGB, float]":
    """Return the least-squares map, and the share of the images' variance that it explains.

    Args:
        latents: (n, c, h, w).
        images: (n, 3, H, W) in -1..1, the images of these latents; each latent is fitted to the mean of its
            pixels.
    """
    import torch

    from ldm.imaging.preview import LatentToRGB

    small = torch.nn.functional.interpolate(images.double(), latents.shape[-2:], mode="area")
    x = latents.double().movedim(1, -1).flatten(0, -2)  # (n h w, c)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    y = small.movedim(1, -1).flatten(0, -2)  # (n h w, 3)
    solution = torch.linalg.lstsq(x, y).solution  # (c + 1, 3)
    explained = 1 - float((y - x @ solution).var() / y.var())
    *factors, bias = [tuple(round(value, 4) for value in row) for row in solution.tolist()]
    return LatentToRGB(tuple(factors), bias), explained


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "configs/demo/emoji_preview.json", metavar="FILE")
    count = argument_type(integer(1))
    parser.add_argument("--n_iter", type=count, default=2, metavar="N", help="images per prompt")
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    import torch

    from ldm import generate, load_model
    from ldm.jobs.opening import demo_files
    from ldm.requests import Txt2Img

    model = load_model(*demo_files(), device="cpu", dtype="float32")
    request = Txt2Img(
        prompts=PROMPTS, seed=0, n_samples=4, n_iter=args.n_iter, sampler="dpmpp_2m", steps=20, scale=5.0
    )
    made = list(generate(model, request))
    latents, images = torch.cat([b.latents for b in made]), torch.cat([b.images for b in made])
    preview, explained = fit_map(latents, images.clamp(-1, 1))
    rows = ",\n    ".join(json.dumps(row) for row in preview.factors)
    args.out.write_text(f'{{\n  "factors": [\n    {rows}\n  ],\n  "bias": {json.dumps(preview.bias)}\n}}\n')
    print(f"{args.out}: fitted to {len(latents)} images, explains {explained:.1%} of their variance")


if __name__ == "__main__":
    app.run(make_parser(), main)
