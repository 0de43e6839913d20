"""The command of scripts/annotate.py: maps of images and folders, one PNG file each."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm import annotators
from ldm.cli import app
from ldm.cli.flags import add_options
from ldm.cli.parser import Parser, add_messages, argument_type, path
from ldm.errors import InputError

if TYPE_CHECKING:
    from ldm.annotators.base import Annotator

log = logging.getLogger(__name__)


def make_parser(description: str | None, kind: str | None = None) -> Parser:
    """Return the parser, with the options of an annotator if one is known."""
    width = max(map(len, annotators.KINDS))
    table = "\n".join(f"  {name:<{width}}  {what}" for name, what in annotators.KINDS.items())
    title = f"annotators, each with options of its own (KIND --help):\n{table}"
    parser = Parser(
        description=description, epilog=None if kind else title, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("kind", metavar="KIND", type=argument_type(annotators.find), help="the annotator")
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", type=path, help="what is annotated")
    add = parser.add_argument_group("output").add_argument
    add("--out", metavar="FILE|DIR", type=path, help="a PNG file for one image, else a folder (default: "
        "outputs/KIND)")  # fmt: skip
    add("--full-size", action="store_true", help="resize maps to the size of their images (default: the size "
        "at which they were annotated)")  # fmt: skip
    add("--overwrite", action="store_true", help="replace maps that exist")
    add("--skip-existing", action="store_true", help="leave out images whose maps exist")
    if kind is not None:
        add_options(parser, annotators.find(kind))
    add_messages(parser)
    return parser


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run scripts/annotate.py: parse the command line, carry it out, and return the exit code."""
    words = sys.argv[1:] if argv is None else [str(word) for word in argv]
    kind = next((word for word in words if _is_known(word)), None)
    return app.exit_code(make_parser(description, kind), _annotate, words)


def _is_known(word: str) -> bool:
    try:
        return bool(annotators.find(word))
    except InputError:
        return False


def _annotate(args: argparse.Namespace) -> None:
    values = {name: value for name, value in vars(args).items() if name in args.kind.FIELDS}
    annotator = args.kind(**values)
    if getattr(args, "overwrite", False) and getattr(args, "skip_existing", False):
        raise InputError("--overwrite replaces maps and --skip-existing keeps them; give one of them")
    jobs = _jobs(args)
    if not jobs:
        return
    annotator.prepare()
    failed = []
    for image, out in jobs:
        try:
            _write(annotator, image, out, getattr(args, "full_size", False))
        except InputError as error:
            if len(jobs) == 1:
                raise
            log.warning("%s", error)
            failed.append(image)
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} images cannot be annotated")


def _jobs(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Return each image with the file of its map, checked before anything is read."""
    kind = args.kind.__module__.rpartition(".")[2]
    jobs = _targets(args.images, getattr(args, "out", Path("outputs") / kind))
    exist = [target for _, target in jobs if target.exists()]
    if exist and getattr(args, "skip_existing", False):
        log.info("%d of %d maps exist", len(exist), len(jobs))
        return [job for job in jobs if job[1] not in exist]
    if exist and not getattr(args, "overwrite", False):
        more = f" and {len(exist) - 1} more exist" if len(exist) > 1 else " exists"
        raise InputError(f"{exist[0]}{more} already; give another --out, --overwrite or --skip-existing")
    return jobs


def _targets(given: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Return each image of files and folders with the file of its map, below `out` as in its folder."""
    from ldm.data.folder import image_files

    sources: dict[Path, Path] = {}
    for place in given:
        files = image_files(place) if place.is_dir() else [place]
        if not files:
            raise InputError(f"{place}: contains no images")
        for file in files:
            inside = file.relative_to(place) if place.is_dir() else Path(file.name)
            target = out / inside.with_suffix(".png")
            if target in sources:
                raise InputError(
                    f"{sources[target]} and {file} would both become {target}; annotate them one by "
                    "one, with another --out"
                )
            if target.exists() and target.samefile(file):
                raise InputError(f"{target}: the map would replace its image; give another --out")
            sources[target] = file
    if out.suffix.lower() == ".png" and not out.is_dir():
        if len(sources) > 1:
            raise InputError(f"--out {out}: is one file, and there are {len(sources)} images; give a folder")
        return [(file, out) for file in sources.values()]
    if out.suffix.lower() in (".jpg", ".jpeg", ".webp") and not out.is_dir():
        raise InputError(f"--out {out}: maps are written as PNG; give a .png file or a folder")
    return [(file, target) for target, file in sources.items()]


def _write(annotator: "Annotator", image: Path, out: Path, full_size: bool) -> None:
    import numpy as np

    from ldm.files.atomic import atomic_write
    from ldm.imaging.files import open_image
    from ldm.imaging.writing import encoded

    pixels = np.asarray(open_image(image))
    try:
        found = annotator(pixels) if full_size else annotator.detect(pixels)
    except InputError as error:
        raise InputError(f"{image}: {error}") from error
    data = encoded(found, "png", None, None, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, lambda temporary: temporary.write_bytes(data))
    log.info("%s: %dx%d", out, found.shape[1], found.shape[0])
