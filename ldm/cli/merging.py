"""What scripts/merge.py does with its flags."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from ldm.cli.choice import remembered
from ldm.cli.progress import byte_bar
from ldm.errors import InputError

log = logging.getLogger(__name__)


def merge_files(args: argparse.Namespace) -> None:
    """Merge the models that the flags name into one file.

    Raises: InputError, CheckpointError, OSError.
    """
    out = _target(args)

    import torch

    from ldm.checkpoint import load_checkpoint
    from ldm.checkpoint.merge import merge_metadata, plan_merge, read_source
    from ldm.checkpoint.writer import write_safetensors
    from ldm.files.digest import sha256

    sources = [read_source(path, args.weights) for path in args.models]
    sources = [replace(source, about=remembered(source.about)) for source in sources]
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
    log.info("wrote %s: %s, %.2f GB", out, sources[0].about.sentence(), out.stat().st_size / 1e9)


def _target(args: argparse.Namespace) -> Path:
    """Return the file to write, before anything is read."""
    if args.out:
        out = Path(args.out).expanduser()
    else:
        names = "-".join(Path(path).stem for path in args.models)
        out = Path("outputs") / "merged" / f"{names}-{args.alpha:g}.safetensors"
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: only .safetensors files are written; give it that ending")
    if out.exists() and not args.overwrite:
        raise InputError(f"{out} is already there; give another --out, or --overwrite")
    if args.vae and args.parts and "vae" in args.parts:
        raise InputError("--vae replaces the autoencoder and --parts vae merges it; give one of them")
    return out
