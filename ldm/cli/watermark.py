"""The command of scripts/tests/test_watermark.py."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldm.cli import app
from ldm.cli.parser import Parser, add_messages, path
from ldm.errors import InputError

if TYPE_CHECKING:
    import numpy as np

REFERENCE_BITS = 136


def make_parser(description: str | None) -> Parser:
    parser = Parser(description=description)
    parser.add_argument("positional", nargs="?", type=path, metavar="img_path", help="the image")
    parser.add_argument("--img_path", type=path, metavar="FILE", help="the same as a flag")
    add_messages(parser)
    return parser


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run scripts/tests/test_watermark.py: parse the command line, carry it out, return the exit code."""
    return app.exit_code(make_parser(description), _print_watermark, argv)


def _print_watermark(args: argparse.Namespace) -> None:
    paths = [path for path in (args.positional, args.img_path) if path]
    if len(paths) != 1:
        raise InputError(f"expected one image, got {len(paths)}; see --help")

    import numpy as np

    from ldm.imaging import watermark
    from ldm.imaging.files import open_image, quietly

    with quietly():
        image = np.asarray(open_image(paths[0], own_colours=True))
    text = (watermark.recognise(image) or _reference_length(image)).decode("utf-8", "replace")
    print(text if text.isprintable() and "\ufffd" not in text else "null")


def _reference_length(image: "np.ndarray") -> bytes:
    from ldm.imaging import watermark

    return watermark.read(image, REFERENCE_BITS) if watermark.fits(image) else b"\0"
