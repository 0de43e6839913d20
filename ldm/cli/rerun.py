"""The command of scripts/rerun.py."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import app
from ldm.cli.parser import Parser, add_messages, path
from ldm.errors import InputError, LdmError


def make_parser(description: str | None) -> Parser:
    parser = Parser(description=description)
    parser.add_argument("images", nargs="+", type=path, metavar="IMAGE", help="images of this toolkit")
    parser.add_argument(
        "--with", nargs="+", action="extend", default=[], dest="changes", metavar="NAME=VALUE",
        help="change options, such as seed=7 scale=5; the images are then not compared",
    )  # fmt: skip
    parser.add_argument(
        "--files", nargs="+", action="extend", default=[], type=path, metavar="DIR",
        help="folders in which the weights and input files are looked for",
    )  # fmt: skip
    parser.add_argument(
        "--outdir", type=path, metavar="DIR",
        help="keep the new images here (default: only with --with, in outputs/rerun)",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, ...")
    add_messages(parser)
    return parser


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Make images again and return the exit code, 1 if an image is different."""
    different: list[Path] = []
    code = app.exit_code(make_parser(description), lambda args: _rerun_all(args, different), argv)
    return code or (1 if different else 0)


def _rerun_all(args: argparse.Namespace, different: list[Path]) -> None:
    from ldm.cli.progress import Bars
    from ldm.jobs.opening import Models
    from ldm.jobs.rerun import rerun

    changes = dict(_pair(word) for word in args.changes)
    models, failed = Models(), None
    with tempfile.TemporaryDirectory() as temporary:
        outdir = args.outdir or (Path("outputs/rerun") if changes else Path(temporary))
        for image in args.images:
            try:
                done = rerun(image, outdir, changes, args.files, args.device, models, Bars(args.quiet))
            except LdmError as error:
                failed = error
                if len(args.images) > 1:
                    print(f"error: {error}", file=sys.stderr)
                continue
            print(done.sentence(is_kept=str(outdir) != temporary))
            if not done.is_same:
                different.append(image)
    if failed is not None:
        raise failed if len(args.images) == 1 else InputError("not all images could be made again")


def _pair(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals:
        raise InputError(f"--with {word}: expected NAME=VALUE, such as seed=7")
    return name, value
