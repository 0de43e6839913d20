"""Print the text of an image's invisible watermark, or null.

  python scripts/tests/test_watermark.py image.png
  python scripts/tests/test_watermark.py --img_path image.png

As in the reference, 136 bits are read, the length of StableDiffusionV1. The 32 bits SDV2 of the Stable
Diffusion 2 scripts, which the reference program cannot read, are recognised too.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone works without being installed

from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser, add_messages  # noqa: E402
from ldm.errors import InputError  # noqa: E402

REFERENCE_BITS = 136


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("positional", nargs="?", metavar="img_path", help="the image")
    parser.add_argument("--img_path", metavar="FILE", help="the same as a flag")
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    paths = [path for path in (args.positional, args.img_path) if path]
    if len(paths) != 1:
        raise InputError(f"expected one image, got {len(paths)}; see --help")

    import numpy as np

    from ldm.imaging import watermark
    from ldm.imaging.files import open_image

    image = np.asarray(open_image(paths[0]))
    text = (watermark.recognise(image) or _reference_length(image)).decode("utf-8", "replace")
    print(text if text.isprintable() and "\ufffd" not in text else "null")


def _reference_length(image) -> bytes:
    from ldm.imaging import watermark

    return watermark.read(image, REFERENCE_BITS) if watermark.fits(image) else b"\0"


if __name__ == "__main__":
    app.run(make_parser(), main)
