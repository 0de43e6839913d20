"""A few made-up emoji: npm tarballs of them, and the data set that EmojiScenes reads."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.source import LICENCES, Concept, manifest_entries

# label, code point, emojibase group, tags
ENTRIES = [
    ("dog face", "1F436", 3, ["dog", "pet", "lol"]),
    ("red apple", "1F34E", 4, ["apple", "fruit"]),
    ("owl", "1F989", 3, ["bird"]),
    ("cherries", "1F352", 4, ["fruit", "red"]),
    ("sun", "2600-FE0F", 5, ["weather", "wtv"]),
    ("alarm clock", "23F0", 5, ["clock"]),
    ("scissors", "2702", 7, ["tool"]),
]
DROPPED = [
    ("flag: France", "1F1EB-1F1F7", 9, ["FR"]),
    ("pirate flag", "1F3F4-200D-2620-FE0F", 9, ["pirate"]),
    ("technologist", "1F9D1-200D-1F4BB", 1, ["coder"]),
    ("video game", "1F3AE", 6, ["controller"]),
    ("paperclip", "1F4CE", 7, ["office"]),
    ("linked paperclips", "1F587", 7, ["office"]),
    ("thumbs up", "1F44D", 1, ["yes"]),
    ("right arrow", "27A1", 8, ["arrow"]),
    ("light skin tone", "1F3FB", 7, ["tone"]),
]
NOT_IN_FLAT = ("secret logo", "1F9FF", 7, [])
SMALL_LEFT = '<path fill="#00ff00" d="M0 8h16v16H0z"/><path fill="#0000ff" d="M16 8h16v16H16z"/>'


def _tarball(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _webp():
    buffer = io.BytesIO()
    image = Image.new("RGBA", (64, 64))
    image.paste((10, 200, 30, 255), (16, 24, 48, 40))
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def npm_folder(tmp_path_factory):
    """Tarballs shaped like the npm packages: emoji that may be kept and emoji that must not."""
    folder = tmp_path_factory.mktemp("npm")
    everything = ENTRIES + DROPPED
    emojibase = [
        {"label": label, "hexcode": code, "group": group, "tags": tags}
        for label, code, group, tags in [*everything, NOT_IN_FLAT]
    ] + [{"label": "regional indicator A", "hexcode": "1F1E6"}]
    meta = {"version": "17.0.0", "name": "emojibase-data"}
    _tarball(folder / "emojibase-data-17.0.0.tgz", {"package.json": meta, "en/data.json": emojibase})
    chars = {code.lower().replace("-fe0f", ""): label.replace(" ", "-") for label, code, _, _ in everything}
    icons = {label.replace(" ", "-"): {"body": SMALL_LEFT} for label, *_ in everything}
    del icons["owl"]
    icons["wlo"] = {"body": SMALL_LEFT}
    flat = {
        "package.json": {"name": "@iconify-json/fluent-emoji-flat", "version": "1.2.6"},
        "chars.json": chars,
        "icons.json": {
            "prefix": "f",
            "icons": icons,
            "aliases": {"owl": {"parent": "wlo", "hFlip": True}},
            "width": 32,
            "height": 32,
        },
    }
    _tarball(folder / "iconify-json-fluent-emoji-flat-1.2.6.tgz", flat)
    noto = {**flat, "package.json": {"name": "@iconify-json/noto", "version": "1.2.9"}}
    _tarball(folder / "iconify-json-noto-1.2.9.tgz", noto)
    webp = {f"assets/{code.lower()}.webp": _webp() for _, code, _, _ in everything}
    meta = {"name": "@lobehub/fluent-emoji-3d", "version": "1.1.0"}
    _tarball(folder / "lobehub-fluent-emoji-3d-1.1.0.tgz", {"package.json": meta, **webp})
    return folder


@pytest.fixture(scope="session")
def emoji_folder(tmp_path_factory):
    """A data set of 40 concepts in two styles: left half green, right half blue, a transparent rim."""
    folder = tmp_path_factory.mktemp("emoji")
    named = [Concept(code.lower(), label, tuple(tags[:1]), "food") for label, code, _, tags in ENTRIES]
    concepts = named + [Concept(f"f{i:04x}", f"thing{i}", ("toy",), "objects") for i in range(33)]
    entries = list(manifest_entries(concepts, ("3d", "flat")))
    assert {entry["licence"] for entry in entries} <= set(LICENCES.values())
    sprite = np.zeros((32, 32, 4), np.uint8)
    sprite[4:28, 4:16] = (0, 255, 0, 255)
    sprite[4:28, 16:28] = (0, 0, 255, 255)
    np.save(folder / "sprites.npy", np.stack([sprite] * len(entries)))
    manifest = {"size": 32, "sprites": [{"index": i, **entry} for i, entry in enumerate(entries)]}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def repository_root():
    return Path(__file__).resolve().parents[2]
