"""The command of scripts/add_control.py."""

import argparse
from collections.abc import Sequence

from ldm.cli import app
from ldm.cli.parser import Parser, add_messages


def make_parser(description: str | None) -> Parser:
    parser = Parser(description=description)
    add = parser.add_argument
    add("input", metavar="IN", help="a text-to-image model: .ckpt, .safetensors, or a diffusers folder")
    add("output", metavar="OUT", help="the file to write: NAME.ckpt, .pth, .pt or .safetensors")
    add("--control-only", action="store_true", help="write the ControlNet without the model")
    add("--seed", type=int, default=0, metavar="N", help="of the untrained weights (default: %(default)s)")
    add_messages(parser)
    return parser


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run scripts/add_control.py: parse the command line, carry it out, and return the exit code."""
    return app.exit_code(make_parser(description), _add, argv)


def _add(args: argparse.Namespace) -> None:
    from ldm.jobs.add_control import add_control, check_paths

    source, out = check_paths(args.input, args.output)
    done = add_control(source, out, args.control_only, args.seed)
    for name in done.new:
        print(f"new: {name}")
    print(f"wrote {done.path}: {done.count} tensors, {len(done.new)} of them new", flush=True)
