"""Convert a checkpoint between one file and a diffusers folder, both ways and bit by bit.

  python scripts/convert.py v2-1_512-ema-pruned.ckpt v2-1.safetensors           another container
  python scripts/convert.py v2-1_512-ema-pruned.safetensors sd21                a folder that diffusers loads
  python scripts/convert.py sd21 back.safetensors                               and back
  python scripts/convert.py v1-5-pruned.ckpt v1-5-ema.safetensors --weights ema --prune --dtype float16
  python scripts/convert.py configs/demo/emoji.safetensors emoji --config configs/demo/emoji.yaml

A folder becomes a file. A file becomes a file if OUT ends in .safetensors, and a folder if it does not.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app, options  # noqa: E402

DTYPES = ("keep", "float32", "float16", "bfloat16")
COPIES = ("auto", "ema", "raw", "both")


def make_parser() -> app.Parser:
    parser = app.Parser(description=__doc__)
    add = parser.add_argument
    add("input", metavar="IN", help="a .ckpt, .safetensors, .pt or .bin file, or a diffusers folder")
    add("output", metavar="OUT", help="NAME.safetensors for a file, another name for a folder")
    add("--weights", choices=COPIES, default="auto",
        help="which copy becomes the weights where there is an averaged (EMA) one; both keeps it beside "
        "the raw one (default: %(default)s: both, or raw with --prune)")  # fmt: skip
    add("--prune", action="store_true", help="leave out the other copy, and what only training needs")
    add("--dtype", choices=DTYPES, default="keep", help="what weights are stored as (default: %(default)s)")
    add("--variant", metavar="NAME", help="the variant of the folder that is read or written, such as fp16")
    add("--prediction", choices=("eps", "v"), help="what the model predicts, to be stated in the result")
    add("--config", metavar="YAML", help="what describes the model (default: the published one)")
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    options.common(parser)
    return parser


def main(args: Namespace) -> None:
    import torch

    from ldm.checkpoint.conversion import Wishes, convert
    from ldm.cli.conversion import prediction_to_state, report
    from ldm.cli.progress import byte_bar

    wishes = Wishes(
        config=args.config, prediction=prediction_to_state(args), weights=args.weights, prune=args.prune,
        dtype=None if args.dtype == "keep" else getattr(torch, args.dtype),
        variant=args.variant, overwrite=args.overwrite,
    )  # fmt: skip
    with byte_bar("converting", quiet=args.quiet) as progress:
        done = convert(args.input, args.output, wishes, progress)
    report(done)


if __name__ == "__main__":
    app.run(make_parser(), main)
