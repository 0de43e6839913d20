"""The command of scripts/merge.py."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldm.cli import app
from ldm.cli.parser import Parser, add_messages, argument_type
from ldm.cli.progress import byte_bar
from ldm.errors import InputError
from ldm.requests.fields import number

log = logging.getLogger(__name__)


PARTS = ("unet", "vae", "text")


def make_parser(description: str | None) -> Parser:
    parser = Parser(description=description)
    add = parser.add_argument
    add("models", nargs="+", metavar="FILE", help="A and B, and C for add-difference")
    add("--alpha", type=argument_type(number()), required=True, metavar="X", help="weight of B, or of B - C")
    modes = ("weighted-sum", "add-difference")
    add("--mode", choices=modes, default=modes[0], help="how to merge (default: %(default)s)")
    default = "outputs/merged/A-B-X.safetensors"
    add("--out", metavar="FILE", help=f"the .safetensors file to write (default: {default})")
    add("--overwrite", action="store_true", help="replace FILE if it exists")
    dtypes = ("float16", "bfloat16", "float32")
    add("--dtype", choices=dtypes, help="dtype of the result (default: the wider of the inputs')")
    add(
        "--weights", choices=("auto", "raw", "ema"), default="auto",
        help="which weights to merge of a file that has raw and EMA weights (default: %(default)s: raw)",
    )  # fmt: skip
    add("--vae", metavar="FILE", help="take the VAE from this file")
    add("--parts", type=_parts, metavar="LIST", help="merge only these of unet,vae,text; the rest is A's")
    add_messages(parser)
    return parser


def _parts(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected some of {','.join(PARTS)}")
    return names


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run scripts/merge.py: parse the command line, carry it out, and return the exit code."""
    return app.exit_code(make_parser(description), _merge, argv)


def _merge(args: argparse.Namespace) -> None:
    out = _target(args)

    import torch

    from ldm.checkpoint import load_checkpoint
    from ldm.checkpoint.merge import merge_metadata, plan_merge, read_source
    from ldm.checkpoint.writer import write_safetensors
    from ldm.files.digest import sha256
    from ldm.jobs.choosing import own_yaml, with_cached_verdict

    sources = [read_source(path, args.weights) for path in args.models]
    sources = [replace(source, about=with_cached_verdict(source.about)) for source in sources]
    vae = load_checkpoint(args.vae) if args.vae else None
    dtype = getattr(torch, args.dtype) if args.dtype else None
    plan = plan_merge(sources, args.alpha, args.mode, dtype=dtype, parts=args.parts, vae=vae)
    for note in plan.notes:
        log.info("%s", note)
    files = [file for source in sources for file in source.files]
    digests = {file: sha256(file) for file in files}
    vae_name = Path(args.vae).name if args.vae else None
    metadata = merge_metadata(sources, args.alpha, args.mode, digests, parts=args.parts, vae=vae_name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with byte_bar("merging", quiet=args.quiet) as progress:
        read = [*files, args.vae] if args.vae else files
        write_safetensors(out, plan.entries, metadata, progress=progress, sources=read)
    log.info("wrote %s: %s, %.1f MB", out, sources[0].about.sentence(), out.stat().st_size / 1e6)
    if (own := own_yaml(sources[0].about)) is not None:
        log.info("sample from it with --config %s, the configuration of %s", own, args.models[0])


def _target(args: argparse.Namespace) -> Path:
    """Return the file to write, checked before anything is read."""
    if args.out:
        out = Path(args.out).expanduser()
    else:
        names = "-".join(Path(path).stem for path in args.models)
        out = Path("outputs") / "merged" / f"{names}-{args.alpha:g}.safetensors"
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: only .safetensors files can be written; give a name with that suffix")
    if out.exists() and not args.overwrite:
        raise InputError(f"{out} already exists; give another --out, or --overwrite")
    if args.vae and args.parts and "vae" in args.parts:
        raise InputError("--vae replaces the VAE and --parts vae merges it; give one of them")
    return out
