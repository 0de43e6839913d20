"""Make the emoji data set: filter, draw and describe sprites from npm packages (licences: see NOTICE).

    python demo/make_emoji.py --packages DIR --fetch
    python demo/make_emoji.py --packages DIR --concepts all --styles 3d,flat,noto --size 256
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from demo.captions import STYLES  # noqa: E402
from demo.source import (  # noqa: E402
    PACKAGES,
    VERSIONS,
    choose,
    core_concepts,
    cut_bpe,
    open_packages,
    read_labels,
    tarball_name,
    write_dataset,
)
from ldm.cli import app  # noqa: E402
from ldm.cli.parser import Parser  # noqa: E402
from ldm.clip_files import merges_file  # noqa: E402
from ldm.errors import BackendUnavailable, InputError  # noqa: E402


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--packages", type=Path, default=ROOT / "data" / "npm", help="folder of the npm tarballs")
    add("--fetch", action="store_true", help="fetch missing tarballs with `npm pack`")
    add("--concepts", default="familiar", help="familiar, all, or a file with one label a line")
    add("--styles", default="3d,flat", help=f"comma-separated, out of {', '.join(STYLES)}")
    add("--size", type=int, default=128, help="pixels of a sprite's side")
    add("--out", type=Path, default=ROOT / "data" / "emoji", help="the data set goes to OUT/SIZE")
    add("--cut-bpe", type=Path, metavar="FILE", help="only write FILE: open_clip's merges cut to 4,096")
    return parser


def fetch(folder: Path, roles: list[str]) -> None:
    """Run `npm pack` for every tarball that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for role in roles:
        if (folder / tarball_name(role)).exists():
            continue
        command = ["npm", "pack", "--loglevel=error", f"{PACKAGES[role]}@{VERSIONS[role]}"]
        try:
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise BackendUnavailable("--fetch needs npm (Node.js); or put the tarballs there") from error
        except subprocess.CalledProcessError as error:
            raise InputError(f"`{' '.join(command)}` failed with exit code {error.returncode}") from error


def main(options: argparse.Namespace) -> None:
    if options.cut_bpe:
        cut_bpe(merges_file(), options.cut_bpe)
        return
    styles = tuple(options.styles.split(","))
    if unknown := [style for style in styles if style not in STYLES]:
        raise InputError(f"--styles {','.join(unknown)}: expected some of {', '.join(STYLES)}")
    roles = list(dict.fromkeys(["captions", "flat", *styles]))
    if options.fetch:
        fetch(options.packages, roles)
    packages = open_packages(options.packages, roles)
    concepts = core_concepts(packages["captions"], packages["flat"])
    if options.concepts != "all":
        familiar = ROOT / "configs" / "demo" / "concepts.txt"
        path = familiar if options.concepts == "familiar" else Path(options.concepts)
        if not path.is_file():
            raise InputError(f"--concepts {options.concepts}: no such file; expected familiar, all or a file")
        concepts = choose(concepts, read_labels(path))
    folder = options.out / str(options.size)
    entries = write_dataset(folder, packages, concepts, styles, options.size)
    held_out = sum(entry["held_out"] for entry in entries)
    print(f"{folder}: {len(entries)} sprites of {options.size} px, {held_out} of them held out")


if __name__ == "__main__":
    app.run(make_parser(), main)
