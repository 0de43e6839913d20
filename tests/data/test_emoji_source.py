"""What is kept of the npm packages, how it is drawn and what is written."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from demo.source import (
    choose,
    core_concepts,
    cut_bpe,
    held_out_styles,
    open_packages,
    sprite_source,
    tarball_name,
    trim,
    write_dataset,
)
from ldm.errors import InputError


@pytest.fixture(scope="module")
def packages(npm_folder):
    return open_packages(npm_folder, ["captions", "flat", "3d", "noto"])


@pytest.fixture(scope="module")
def concepts(packages):
    return core_concepts(packages["captions"], packages["flat"])


def test_only_open_sourced_core_emoji_are_kept(concepts):
    kept = [concept.label for concept in concepts]
    assert kept == ["dog face", "red apple", "owl", "cherries", "sun", "alarm clock", "scissors"]


def test_code_points_are_compared_without_variation_selector(concepts):
    assert next(concept for concept in concepts if concept.label == "sun").code_point == "2600"


def test_choosing_keeps_the_order_and_names_what_is_missing(concepts):
    assert [concept.label for concept in choose(concepts, ["owl", "sun"])] == ["owl", "sun"]
    with pytest.raises(InputError, match="video game"):
        choose(concepts, ["owl", "video game"])


def test_missing_tarball_is_named(tmp_path):
    with pytest.raises(InputError, match="npm pack @iconify-json/noto@1.2.9"):
        open_packages(tmp_path, ["noto"])
    assert tarball_name("3d") == "lobehub-fluent-emoji-3d-1.1.0.tgz"


def test_trim_fills_the_square_and_keeps_the_shape():
    image = Image.new("RGBA", (100, 100))
    image.paste((200, 10, 10, 255), (30, 40, 70, 60))  # 40 wide, 20 high
    pixels = np.asarray(trim(image, 40))
    assert pixels.shape == (40, 40, 4)
    assert (pixels[12:28, 2:38] == (200, 10, 10, 255)).all()
    assert (pixels[:8, :, 3] == 0).all()
    with pytest.raises(InputError, match="visible"):
        trim(Image.new("RGBA", (8, 8)), 8)


def test_webp_is_found_by_code_point(packages):
    draw = sprite_source("3d", packages["3d"])
    assert draw("2600", 64).size == (64, 64)
    assert draw("ffff", 64) is None


def test_svg_is_drawn_and_a_mirrored_alias_is_mirrored(packages):
    pytest.importorskip("resvg_py")
    draw = sprite_source("flat", packages["flat"])
    dog, owl = (np.asarray(draw(code, 64)) for code in ("1f436", "1f989"))
    assert dog.shape == (64, 64, 4)
    assert (dog[32, 10] == (0, 255, 0, 255)).all()
    assert (dog == owl[:, ::-1]).all()
    assert draw("ffff", 64) is None


def test_a_concept_is_held_out_in_one_style_at_most_and_five_percent_of_cells_are():
    cells = [held_out_styles(f"{code:x}", ("3d", "flat", "noto")) for code in range(4000)]
    assert max(len(cell) for cell in cells) == 1
    assert 0.04 < sum(len(cell) for cell in cells) / (3 * len(cells)) < 0.06


def test_the_written_data_set_is_complete_and_the_same_each_time(packages, concepts, tmp_path):
    pytest.importorskip("resvg_py")
    entries = write_dataset(tmp_path / "a", packages, concepts, ("3d", "flat", "noto"), 32)
    write_dataset(tmp_path / "b", packages, concepts, ("3d", "flat", "noto"), 32)
    for name in ("sprites.npy", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    sprites = np.load(tmp_path / "a" / "sprites.npy", mmap_mode="r")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text(encoding="utf-8"))
    assert sprites.shape == (21, 32, 32, 4)
    assert [entry["index"] for entry in manifest["sprites"]] == list(range(21))
    assert {entry["licence"].split(",")[0] for entry in entries if entry["style"] == "noto"} == {"Apache-2.0"}
    assert manifest["packages"]["flat"] == "@iconify-json/fluent-emoji-flat@1.2.6"
    clock = next(entry for entry in entries if entry["label"] == "alarm clock")
    assert not clock["mirrorable"]
    assert clock["phrase"] == "an alarm clock"
    # Each sprite lies where its entry says: 3d drawings are green, the others green and blue.
    blue = sprites[:, 16, 24, 2] > 200
    assert blue.tolist() == [entry["style"] != "3d" and entry["label"] != "owl" for entry in entries]


def test_cut_bpe_keeps_header_and_first_merges(tmp_path):
    source = tmp_path / "full.txt.gz"
    source.write_bytes(gzip.compress("\n".join(["#version", *[f"m{i} x" for i in range(9)], ""]).encode()))
    cut_bpe(source, tmp_path / "cut.txt.gz", num_merges=4)
    assert gzip.decompress((tmp_path / "cut.txt.gz").read_bytes()) == b"#version\nm0 x\nm1 x\nm2 x\nm3 x"
    with pytest.raises(InputError, match="fewer than"):
        cut_bpe(source, tmp_path / "cut.txt.gz", num_merges=50)


def test_shipped_merges_are_those_of_open_clip(repository_root, tmp_path):
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    shipped = repository_root / "configs" / "demo" / "emoji_bpe.txt.gz"
    full = gzip.open(default_bpe()).read().decode().split("\n")
    assert gzip.decompress(shipped.read_bytes()).decode().split("\n") == full[:4097]
    tokenizer = SimpleTokenizer(str(shipped))
    assert tokenizer.vocab_size == 512 + 4096 + 2
    text = "3d emoji of a red apple next to an owl, blue background"
    assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.replace(" ", "")


def test_the_script_makes_data_and_reports_mistakes_in_one_line(npm_folder, repository_root, tmp_path):
    pytest.importorskip("resvg_py")
    script = [sys.executable, str(repository_root / "demo" / "make_emoji.py")]
    common = ["--packages", str(npm_folder), "--size", "32", "--out", str(tmp_path)]
    everything = [*script, *common, "--concepts", "all"]
    done = subprocess.run(everything, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "14 sprites of 32 px" in done.stdout
    for wrong in (["--styles", "3d,oil"], ["--concepts", "nowhere.txt"], ["--packages", str(tmp_path)]):
        failed = subprocess.run([*script, *common, *wrong], capture_output=True, text=True, cwd=tmp_path)
        assert failed.returncode == 2
        assert failed.stderr.startswith("error: ")
        assert failed.stderr.count("\n") == 1
