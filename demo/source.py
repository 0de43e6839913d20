"""Emoji sprites from published npm packages: what is kept, how it is drawn, where it is written.

    tarballs --concepts()--> Concept --draw()--> RGBA sprite --write_dataset()--> sprites.npy + manifest.json

Three drawings of one concept exist: Microsoft Fluent 3D (WebP) and flat (SVG), Google Noto (SVG).
Labels and tags are those of emojibase. Microsoft did not open-source its national flags, technologists, video
game and paperclip, although some collections carry them: only code points of the flat set are kept, because
that set is built from Microsoft's own repository, and those four are dropped by name as well.
"""

import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.captions import STYLES, caption_tags, everyday_name, is_mirrorable, is_plural, noun_phrase
from ldm.errors import BackendUnavailable, InputError

PACKAGES = {
    "captions": "emojibase-data",
    "3d": "@lobehub/fluent-emoji-3d",
    "flat": "@iconify-json/fluent-emoji-flat",
    "noto": "@iconify-json/noto",
}
VERSIONS = {"captions": "17.0.0", "3d": "1.1.0", "flat": "1.2.6", "noto": "1.2.9"}
LICENCES = {
    "3d": "MIT, Copyright (c) Microsoft Corporation (Fluent Emoji)",
    "flat": "MIT, Copyright (c) Microsoft Corporation (Fluent Emoji)",
    "noto": "Apache-2.0, Copyright Google LLC (Noto Emoji)",
}
# emojibase groups: smileys, animals and nature, food, travel, activities, objects.
# People (1), components (2), symbols (8) and flags (9) stay out.
CORE_GROUPS = {0: "faces", 3: "animals", 4: "food", 5: "travel", 6: "activities", 7: "objects"}
_NOT_OPEN_SOURCED = re.compile(r"technologist|video game|paperclip|\bflag: ", re.IGNORECASE)
_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
HELD_OUT_SHARE = 0.05


@dataclass(frozen=True)
class Concept:
    """One emoji: its code points, its words and the group it belongs to."""

    code_point: str
    label: str
    tags: tuple[str, ...]
    group: str


class Package:
    """An npm tarball, read in place."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            self._files = {
                member.name.removeprefix("package/"): archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive
                if member.isfile() and _is_needed(member.name)
            }
        meta = self.json("package.json")
        self.name, self.version = meta["name"], meta["version"]

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def read(self, name: str) -> bytes:
        if name not in self._files:
            raise InputError(f"npm package without {name}; expected one of {', '.join(PACKAGES.values())}")
        return self._files[name]

    def names(self) -> Iterable[str]:
        return self._files.keys()


def _is_needed(name: str) -> bool:
    return name.endswith(".webp") or name in {
        "package/package.json",
        "package/chars.json",
        "package/icons.json",
        "package/en/data.json",
    }


def tarball_name(role: str) -> str:
    """Return the file name that `npm pack` gives to the package of a role ("captions" or a style)."""
    return f"{PACKAGES[role].removeprefix('@').replace('/', '-')}-{VERSIONS[role]}.tgz"


def open_packages(folder: Path, roles: Iterable[str]) -> dict[str, Package]:
    """Open the tarballs of the given roles, whatever their version, in `folder`.

    Raises: InputError when one is missing.
    """
    packages = {}
    for role in roles:
        stem = PACKAGES[role].removeprefix("@").replace("/", "-")
        found = sorted(folder.glob(f"{stem}-[0-9]*.tgz"))
        if not found:
            raise InputError(
                f"{folder}: no {stem}-*.tgz; use --fetch or `npm pack {PACKAGES[role]}@{VERSIONS[role]}`"
            )
        packages[role] = Package(found[-1])
    return packages


def plain_code_point(code_point: str) -> str:
    """Return lower-case code points without the variation selector, which not every collection writes."""
    return "-".join(part for part in code_point.lower().split("-") if part != "fe0f")


def core_concepts(captions: Package, flat: Package) -> list[Concept]:
    """Return the usable concepts: of the core groups, in the flat set, open-sourced, without skin tone."""
    open_sourced = {plain_code_point(code) for code in flat.json("chars.json")}
    kept = []
    for entry in captions.json("en/data.json"):
        code_point, label = plain_code_point(entry["hexcode"]), entry["label"]
        if entry.get("group") not in CORE_GROUPS or code_point not in open_sourced:
            continue
        if _NOT_OPEN_SOURCED.search(label) or _SKIN_TONES & set(code_point.split("-")):
            continue
        tags = tuple(caption_tags(label, entry.get("tags", [])))
        kept.append(Concept(code_point, label, tags, CORE_GROUPS[entry["group"]]))
    return kept


def read_labels(path: Path) -> list[str]:
    """Return the labels of a concept list: one a line, # begins a comment."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def choose(concepts: list[Concept], labels: list[str]) -> list[Concept]:
    """Return the concepts with these labels, in their order. Raises: InputError for one that is not there."""
    by_label = {concept.label: concept for concept in concepts}
    missing = [label for label in labels if label not in by_label]
    if missing:
        raise InputError(f"concept list names {', '.join(missing)}: not in the packages, or filtered out")
    return [by_label[label] for label in labels]


# --- drawing ------------------------------------------------------------------------------------------------


def sprite_source(style: str, package: Package) -> Callable[[str, int], Image.Image | None]:
    """Return draw(code_point, size): the emoji in RGBA, or None. SVG has `size` pixels, WebP its own."""
    return _webp_source(package) if style == "3d" else _svg_source(package)


def _webp_source(package: Package) -> Callable[[str, int], Image.Image | None]:
    files = {plain_code_point(Path(name).stem): name for name in package.names() if name.endswith(".webp")}

    def draw(code_point: str, size: int) -> Image.Image | None:
        if code_point not in files:
            return None
        return Image.open(io.BytesIO(package.read(files[code_point]))).convert("RGBA")

    return draw


def _svg_source(package: Package) -> Callable[[str, int], Image.Image | None]:
    try:
        import resvg_py
    except ImportError as error:
        raise BackendUnavailable("drawing SVG needs resvg-py: pip install resvg-py") from error
    icons = package.json("icons.json")
    names = {plain_code_point(code): name for code, name in package.json("chars.json").items()}

    def draw(code_point: str, size: int) -> Image.Image | None:
        svg = _svg(icons, names[code_point]) if code_point in names else None
        if svg is None:
            return None
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
        return Image.open(io.BytesIO(bytes(png))).convert("RGBA")

    return draw


def _svg(icons: dict[str, Any], name: str) -> str | None:
    """Return the SVG of an icon; an alias is drawn as its parent, mirrored where it says so."""
    flip = False
    while name in icons.get("aliases", {}):
        alias = icons["aliases"][name]
        flip ^= bool(alias.get("hFlip"))
        name = alias["parent"]
    icon = icons["icons"].get(name)
    if icon is None:
        return None
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    body = icon["body"]
    if flip:
        body = f'<g transform="translate({width} 0) scale(-1 1)">{body}</g>'
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'


def trim(image: Image.Image, size: int) -> Image.Image:
    """Crop to what is visible, centre in a square and resize to `size` pixels.

    Pillow resizes RGBA through premultiplied alpha, so no dark rim appears.
    """
    visible = image.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if visible is None:
        raise InputError("an emoji without a visible pixel")
    image = image.crop(visible)
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)


# --- the data set -------------------------------------------------------------------------------------------


def held_out_styles(code_point: str, styles: Iterable[str]) -> set[str]:
    """Return which of the styles of a concept are held out from training: at most one, 5 % of cells in all.

    The choice hangs on the code points and the style only, so that it is the same at every size and for every
    list of concepts. With several styles one always stays, or the concept itself would be unknown.
    """
    shares = {style: _share(f"{code_point}/{style}") for style in styles}
    lowest = min(shares, key=lambda style: shares[style])
    return {lowest} if shares[lowest] < HELD_OUT_SHARE else set()


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def manifest_entries(concepts: list[Concept], styles: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the manifest's entry of every cell, without its index."""
    labels = {concept.label for concept in concepts}
    for concept in concepts:
        everyday = everyday_name(concept.label, concept.group)
        if everyday in labels:  # "cat" is another image than "cat face" where both are there
            everyday = None
        held_out = held_out_styles(concept.code_point, STYLES)
        for style in styles:
            yield {
                **asdict(concept),
                "phrase": noun_phrase(concept.label),
                "plural": is_plural(concept.label),
                "everyday": everyday,
                "everyday_phrase": None if everyday is None else noun_phrase(everyday),
                "style": style,
                "licence": LICENCES[style],
                "held_out": style in held_out,
                "mirrorable": is_mirrorable(concept.label),
            }


def write_dataset(
    folder: Path, packages: dict[str, Package], concepts: list[Concept], styles: tuple[str, ...], size: int
) -> list[dict[str, Any]]:
    """Draw every cell and write folder/sprites.npy (n, size, size, 4) uint8 and folder/manifest.json.

    Concepts that one of the styles lacks are left out of all, so that the styles stay aligned.
    Returns the manifest's entries.
    """
    draw = {style: sprite_source(style, packages[style]) for style in styles}
    sprites, kept = [], []
    for concept in concepts:
        # Drawing at twice the size leaves the trim enough pixels.
        images = [draw[style](concept.code_point, 2 * size) for style in styles]
        if all(image is not None for image in images):
            kept.append(concept)
            sprites.extend(np.asarray(trim(image, size)) for image in images)
    entries = [{"index": index, **entry} for index, entry in enumerate(manifest_entries(kept, styles))]
    if not sprites:
        raise InputError(f"no concept exists in every style of {', '.join(styles)}; choose fewer styles")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "sprites.npy", np.stack(sprites))
    manifest = {
        "size": size,
        "styles": list(styles),
        "packages": {role: f"{package.name}@{package.version}" for role, package in packages.items()},
        "sprites": entries,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return entries


def cut_bpe(source: Path, target: Path, num_merges: int = 4096) -> None:
    """Write the header line and the first `num_merges` merges of a CLIP byte-pair file.

    There is no line break at the end: open_clip would read an empty line as one more merge. The time stamp in
    the gzip header is zero, so that the same merges give the same file.
    """
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    if len(lines) <= num_merges:
        raise InputError(f"{source} holds {len(lines) - 1} merges, fewer than the {num_merges} asked for")
    target.write_bytes(gzip.compress("\n".join(lines[: num_merges + 1]).encode("utf-8"), mtime=0))
