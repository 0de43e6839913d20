"""The command of scripts/convert.py."""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm.cli import app
from ldm.cli.parser import Parser, add_messages
from ldm.wording import counted

if TYPE_CHECKING:
    from ldm.checkpoint.convert import Converted

log = logging.getLogger(__name__)


DTYPES = ("keep", "float32", "float16", "bfloat16")
COPIES = ("auto", "ema", "raw", "both")
PARTS = ("unet", "vae", "text_encoder", "controlnet", "image_encoder", "depth_estimator")


def make_parser(description: str | None) -> Parser:
    parser = Parser(description=description)
    add = parser.add_argument
    add("input", metavar="IN", help="a .ckpt, .safetensors, .pt or .bin file, or a diffusers folder")
    add("output", metavar="OUT", help="NAME.safetensors for a file, another name for a folder")
    add(
        "--weights", choices=COPIES, default="auto",
        help="which weights of a file with EMA weights to keep; both keeps the EMA and the raw weights "
        "(default: %(default)s: both, or raw with --prune)",
    )  # fmt: skip
    add(
        "--prune", action="store_true",
        help="drop the other set, tensors that only training needs, and those of no part of the model",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, default="keep", help="dtype to store weights in (default: %(default)s)")
    add("--variant", metavar="NAME", help="variant of the folder to read or write, such as fp16")
    add("--prediction", choices=("eps", "v"), help="what the model predicts, to store in the result")
    add("--config", metavar="YAML", help="configuration of the model (default: the included one)")
    add("--only", choices=PARTS, help="write this part of a file or folder alone")
    add(
        "--base", metavar="FILE",
        help="weights of the model that a ControlNet stored as a difference is to be added to",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace OUT if it exists")
    add_messages(parser)
    return parser


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run scripts/convert.py: parse the command line, carry it out, and return the exit code."""
    return app.exit_code(make_parser(description), _convert, argv)


def _convert(args: argparse.Namespace) -> None:
    import torch

    from ldm.checkpoint.conversion import ConvertOptions, convert
    from ldm.cli.progress import byte_bar

    prediction = args.prediction
    if not (prediction or args.config):
        prediction = _found_by_probe(args.input)
    options = ConvertOptions(
        config=args.config, prediction=prediction, weights=args.weights, prune=args.prune,
        dtype=None if args.dtype == "keep" else getattr(torch, args.dtype),
        variant=args.variant, overwrite=args.overwrite,
        only=args.only, base=args.base,
    )  # fmt: skip
    with byte_bar("converting", quiet=args.quiet) as progress:
        done = convert(args.input, args.output, options, progress)
    report(done)


def _found_by_probe(path: str) -> str | None:
    """Return what an earlier probe of a file has found.

    Raises:
        CheckpointError: as loading does.
    """
    from ldm.checkpoint import identify
    from ldm.jobs.choosing import with_cached_verdict

    identity = with_cached_verdict(identify(path))
    return identity.prediction if identity.prediction_source == "probe" else None


def report(done: "Converted") -> None:
    """Log one line for each part that was kept, each reason to drop tensors, each note, and the result."""
    from ldm.checkpoint.parts import PARTS

    for verb, amounts in (("kept", done.kept), ("dropped", done.dropped)):
        for what, (count, size) in amounts.items():
            label = PARTS[what].label if what in PARTS else what
            log.info("%s %s (%.1f MB): %s", verb, counted(count, "tensor"), size / 1e6, label)
    for note in done.notes:
        log.info("%s", note)
    said = ", ".join(f"{k.removeprefix('sd.')} {v}" for k, v in done.metadata.items() if k.startswith("sd."))
    what, about = "folder" if done.is_folder else "file", f"; its metadata say: {said}" if said else ""
    log.info("wrote the %s %s%s", what, done.target, about)
