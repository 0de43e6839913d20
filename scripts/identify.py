"""Report what weights files contain: task, family, eps or v, storage format, and the config they need.

  python scripts/identify.py model.safetensors                    any .ckpt, .pt, .bin, .safetensors or folder
  python scripts/identify.py *.safetensors *.ckpt                 one line each
  python scripts/identify.py v2-1_768.ckpt --json --hash          JSON, with the SHA-256
  python scripts/identify.py v2-1_768.ckpt --probe                detect eps or v by evaluating the UNet once

Only the headers are read, so that large files take no longer, and no code in a file is executed. The exit
code is 2 if any of the files cannot be used.
"""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser, add_messages  # noqa: E402


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE", help="weights, or a diffusers folder")
    parser.add_argument("--json", action="store_true", help="print an object, or a list for several files")
    parser.add_argument("--hash", action="store_true", help="compute the SHA-256, which reads the whole file")
    parser.add_argument(
        "--probe", action="store_true", help="load the model to detect eps or v if the file does not state it"
    )
    add_messages(parser)
    return parser


def main(args: Namespace) -> None:
    from ldm.cli.identification import identify_all, show

    show(args, identify_all(args))


if __name__ == "__main__":
    app.run(make_parser(), main)
