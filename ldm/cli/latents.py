"""--latents FILE: noise to start from, finished latents to decode, a stopped run to go on with.

A file of a stopped or finished picture brings the flags that it was made with, so that it is enough alone:

    python scripts/txt2img.py --latents outputs/txt2img-samples/interrupted-00000.safetensors
    python scripts/txt2img.py --latents outputs/txt2img-samples/samples/00000.latents.safetensors

Flags given beside it may say where and how to save, not what to make.
"""

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError

if TYPE_CHECKING:
    from ldm.cli.app import Parser
    from ldm.cli.model import OpenedModel
    from ldm.tasks.latents import LatentsFile, Position

# Flags that may be given beside a file that brings its own: they change where things are and what is shown,
FREE = frozenset(
    "outdir quiet debug no_grid n_rows watermark no_metadata preview_every save_latents ckpt device".split()
)
# and for what is only decoded, how.
DECODING = FREE | frozenset("config vae weights prediction allow_nonfinite dtype precision bf16".split())
DECODERS = ("txt2img", "sample")  # the scripts that decode a finished picture
# In the record of a finished picture's file, not of the PNG's.
OWN = ("kind", "command", "folder", "pictures_in_batch")


@dataclass(frozen=True)
class Start:
    """What --latents gives a run; all None without it."""

    latents: "LatentsFile | None" = None  # to begin with
    stopped: "LatentsFile | None" = None  # to go on with
    finished: "LatentsFile | None" = None  # to decode

    @property
    def position(self) -> "Position | None":
        return None if self.stopped is None else self.stopped.position

    @property
    def prompts(self) -> list[str] | None:
        """The prompts of the run that is gone on with, which its files may no longer hold."""
        if self.stopped is not None:
            return self.stopped.position.prompts
        return None if self.finished is None else [self.finished.record["prompt"]]

    def picture_size(self) -> tuple[int, int] | None:
        """Return (height, width) of the picture whose latents are begun with, where that is known."""
        record = {} if self.latents is None else self.latents.record
        return (record["height"], record["width"]) if {"height", "width"} <= record.keys() else None

    def record(self) -> dict[str, Any]:
        """Return what a picture remembers of the latents that it began with."""
        if self.latents is None:
            return {}
        path = self.latents.path
        return {"latents": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}

    def check_model(self, opened: "OpenedModel") -> None:
        """Refuse to go on with other weights."""
        if self.stopped is None:
            return
        before, now = self.stopped.record.get("model", {}), opened.record()
        if before.get("sha256") != now["sha256"]:
            raise InputError(
                f"{self.stopped.path} is of {before.get('checkpoint')} (SHA-256 {before.get('sha256')}), and "
                f"this is {now['checkpoint']} ({now['sha256']}); give --ckpt with those weights"
            )

    def batches_left(self, prompts: list[str], args: argparse.Namespace) -> int:
        """Return how many batches are to be made."""
        if self.finished is not None:
            return 1
        each = -(-len(prompts) // args.n_samples)
        total = args.n_iter * each
        if self.position is None:
            return total
        rounds, within = divmod(self.position.first, len(prompts))
        return total - rounds * each - within // args.n_samples


def take_flags(parser: "Parser", args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Keep the command line, or put that of --latents FILE in its place where the file brings one.

    Sets `args.command`, the flags to make this again; `args.goes_on`, the file of a stopped or finished run.

    Raises: InputError where flags contradict those of the file, or it belongs to another script.
    """
    args.command, args.goes_on = list(argv), None
    if args.latents is None:
        return
    from ldm.tasks.latents import read_record

    path = args.latents
    record = read_record(path)
    kind = record.get("kind")
    if kind == "stopped" and record.get("task") != args.task:
        raise InputError(f"{path} is of a run of scripts/{record.get('task')}.py; give it to that")
    if kind != "stopped" and (kind != "final" or args.task not in DECODERS):
        return
    stored = [str(word) for word in record.get("command", ())]
    stored = parser.found_from(str(record.get("folder", "")), stored)
    own = _without_latents(argv)
    base, merged = parser.parse_known_args(stored)[0], parser.parse_known_args([*stored, *own])[0]
    for name in sorted(parser.given(own) - (FREE if kind == "stopped" else DECODING)):
        if getattr(merged, name) != getattr(base, name):
            flag = parser.flag(name)
            raise InputError(
                f"{flag} {getattr(merged, name)} contradicts {path}, which was made with {flag} "
                f"{getattr(base, name)}; leave it out"
            )
    vars(args).update(vars(merged))
    if kind == "final":  # one picture, whose latents are there
        args.no_grid, args.save_latents = True, False
        args.tasks = None  # the autoencoder of any model decodes
    args.command, args.goes_on = [*stored, *own], path


def _without_latents(argv: Sequence[str]) -> list[str]:
    """Return the words of a command line without --latents FILE."""
    kept, skip = [], False
    for word in argv:
        flag, has_value, _ = word.partition("=")
        if skip:
            skip = False
        elif len(flag) > len("--l") and "--latents".startswith(flag):
            skip = not has_value
        else:
            kept.append(word)
    return kept


def read_start(args: argparse.Namespace) -> Start:
    """Read the files of --latents. Raises: InputError, CheckpointError."""
    if args.latents is None and args.goes_on is None:
        return Start()
    from ldm.tasks.latents import read_latents

    noise = None
    if args.goes_on is not None:
        file = read_latents(args.goes_on)
        if file.kind == "final":
            return Start(finished=file)
        noise = args.latents and read_latents(args.latents)
        return Start(latents=noise, stopped=file)
    file = read_latents(args.latents)
    if file.kind == "final" and args.task != "img2img":
        raise InputError(
            f"{file.path} is of a finished picture, and this starts from noise; scripts/img2img.py takes it"
        )
    return Start(latents=file)


def picture_record(finished: "LatentsFile", opened: "OpenedModel") -> dict[str, Any]:
    """Return what a picture that is decoded again remembers: what it did, and today's model."""
    kept = {name: value for name, value in finished.record.items() if name not in OWN}
    return kept | {"model": opened.record()}


def latents_name(picture: Path) -> Path:
    """Return the name of the latents beside a picture."""
    return picture.with_suffix(".latents.safetensors")
