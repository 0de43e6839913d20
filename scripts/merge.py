"""Merge models: a weighted sum of two, or the difference of two added to a third.

  python scripts/merge.py A.safetensors B.ckpt --alpha 0.3                     0.7 A + 0.3 B
  python scripts/merge.py sd-v1-5-inpainting.ckpt custom.safetensors v1-5-pruned.ckpt --alpha 1 \\
      --mode add-difference --out custom-inpainting.safetensors                A + 1 (B - C)

The models must have the same family, task and prediction. In add-difference, A may have more input channels
(inpainting) than B and C. All layouts are read; the result is one .safetensors file with LDM key names.
"""

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser, add_messages, argument_type  # noqa: E402
from ldm.requests.fields import number  # noqa: E402

PARTS = ("unet", "vae", "text")


def part_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(PARTS):
        raise ArgumentTypeError(f"got {text!r}, expected some of {','.join(PARTS)}")
    return names


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="FILE", help="A and B, and C for add-difference")
    alpha = argument_type(number())
    parser.add_argument("--alpha", type=alpha, required=True, metavar="X", help="how much of B")
    modes = ("weighted-sum", "add-difference")
    parser.add_argument("--mode", choices=modes, default=modes[0], help="(default: %(default)s)")
    default = "outputs/merged/A-B-X.safetensors"
    parser.add_argument("--out", metavar="FILE", help=f"the .safetensors file to write (default: {default})")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    dtypes = ("float16", "bfloat16", "float32")
    parser.add_argument("--dtype", choices=dtypes, help="of the result (default: the wider of the inputs')")
    parser.add_argument(
        "--weights",
        choices=("auto", "raw", "ema"),
        default="auto",
        help="which set to merge of a file that has raw and EMA weights (default: %(default)s: raw)",
    )
    parser.add_argument("--vae", metavar="FILE", help="take the autoencoder from this file")
    parser.add_argument(
        "--parts", type=part_names, metavar="LIST", help="merge only these of unet,vae,text; the rest is A's"
    )
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.merging import merge_files

    merge_files(args)


if __name__ == "__main__":
    app.run(make_parser(), main)
