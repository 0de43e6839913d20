"""Fit the linear map from latents to colours that previews of the demonstration model use.

    python scripts/data/fit_preview.py

Least squares from the latents of pictures that the model itself makes to those pictures, 8 times smaller. The
few numbers go to configs/demo/emoji_preview.json, beside the model's YAML, where --preview-every looks for
them.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # a clone works without being installed

from ldm.cli import app, options  # noqa: E402

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


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "configs/demo/emoji_preview.json", metavar="FILE")
    parser.add_argument("--n_iter", type=options.integer(1), default=2, metavar="N", help="pictures a prompt")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    import torch

    from ldm import load_model
    from ldm.cli.model import demo_files, native_size
    from ldm.imaging.preview import fit_map
    from ldm.tasks.sampling import Settings
    from ldm.tasks.txt2img import txt2img

    model = load_model(*demo_files(), device="cpu", dtype="float32")
    side = native_size(model)
    settings = Settings("dpmpp_2m", 20, guidance_scale=5.0)
    run = txt2img(
        model,
        list(PROMPTS),
        seed=0,
        height=side,
        width=side,
        batch_size=4,
        n_iter=args.n_iter,
        settings=settings,
    )
    made = list(run)
    latents, images = torch.cat([b.latents for b in made]), torch.cat([b.images for b in made])
    preview, explained = fit_map(latents, images.clamp(-1, 1))
    rows = ",\n    ".join(json.dumps(row) for row in preview.factors)
    args.out.write_text(f'{{\n  "factors": [\n    {rows}\n  ],\n  "bias": {json.dumps(preview.bias)}\n}}\n')
    print(f"{args.out}: fitted to {len(latents)} images, explains {explained:.1%} of their variance")


if __name__ == "__main__":
    app.run(make_parser(), main)
