"""Put a trained demonstration model where the package ships it, configs/demo/.

    python scripts/data/ship_demo.py --diffusion runs/emoji_diffusion --clip runs/emoji_clip

The diffusion run's export becomes emoji.safetensors and emoji.yaml. Of the CLIP only the image tower is
added, emoji_clip_image.safetensors: the text tower is in the model, and both together are the judge of
benchmarks/demo_quality.py. Then fit the colours of previews to the new weights: scripts/data/fit_preview.py.
"""

import sys
from argparse import Namespace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # a clone works without being installed

from ldm.cli import app, options  # noqa: E402

HEADING = """\
# python scripts/txt2img.py --prompt "3d emoji of a cat, blue background"
#
# The demonstration model: 128 x 128 emoji. What it can draw, and how well: MODEL_CARD.md.

"""


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    runs = Path("runs")
    parser.add_argument("--diffusion", type=Path, default=runs / "emoji_diffusion", help="run of the UNet")
    parser.add_argument("--clip", type=Path, default=runs / "emoji_clip", help="run of the CLIP")
    parser.add_argument("--out", type=Path, default=ROOT / "configs/demo", help="folder of the demo model")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    from safetensors.torch import load_file, save_file

    from ldm.errors import InputError
    from ldm.training.state import replace_file

    weights, config = args.diffusion / "model.safetensors", args.diffusion / "model.yaml"
    towers = args.clip / "clip.safetensors"
    for path in (weights, config, towers):
        if not path.is_file():
            raise InputError(f"{path} is not there; it is written when the training ends")
    image_tower = {name: x for name, x in load_file(towers).items() if name.startswith("visual.")}
    text = HEADING + config.read_text().partition("\n")[2]
    args.out.mkdir(parents=True, exist_ok=True)
    replace_file(args.out / "emoji.safetensors", lambda file: file.write_bytes(weights.read_bytes()))
    replace_file(args.out / "emoji.yaml", lambda file: file.write_text(text))
    replace_file(
        args.out / "emoji_clip_image.safetensors",
        lambda file: save_file(image_tower, file, metadata={"format": "pt"}),
    )
    for path in sorted(args.out.glob("*.safetensors")):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    app.run(make_parser(), main)
