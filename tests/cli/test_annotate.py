"""scripts/annotate.py as a command: a map for each image; wrong input is one line and writes nothing."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from annotator_cases import photograph
from PIL import Image

from ldm.annotators import KINDS


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(photograph()[:300, :400]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_map_is_written_at_the_detection_resolution(run, photo: Path, tmp_path: Path):
    outcome = run("annotate.py", "canny", photo, "--low_threshold", 50, "--resolution", 128)
    assert outcome.code == 0 and "outputs/canny/photo.png: 192x128" in outcome.out
    small = cv2.resize(pixels(photo), (192, 128), interpolation=cv2.INTER_AREA)
    found = pixels(tmp_path / "outputs/canny/photo.png")
    assert np.array_equal(found, np.repeat(cv2.Canny(small, 50, 200)[..., None], 3, axis=2))


def test_full_size_is_that_of_the_image(run, photo: Path, tmp_path: Path):
    outcome = run("annotate.py", "--full-size", "--out", "map.png", "--resolution", 64, "canny", photo)
    assert outcome.code == 0, outcome.err
    assert pixels(tmp_path / "map.png").shape == (300, 400, 3)


def test_folders_keep_their_structure(run, photo: Path, tmp_path: Path):
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.webp"):
        Image.open(photo).save(tmp_path / "in" / name)
    outcome = run("annotate.py", "blur", "in", photo, "--out", "maps")
    assert outcome.code == 0, outcome.err
    found = {str(path.relative_to(tmp_path / "maps")) for path in (tmp_path / "maps").rglob("*.png")}
    assert found == {"a.png", "deep/b.png", "photo.png"}


def test_maps_that_exist_are_kept_unless_asked(run, photo: Path, tmp_path: Path):
    (tmp_path / "outputs/blur").mkdir(parents=True)
    (tmp_path / "outputs/blur/photo.png").write_text("mine")
    outcome = run("annotate.py", "blur", photo)
    assert outcome.code == 2 and "outputs/blur/photo.png exists already; give another --out" in outcome.err
    assert run("annotate.py", "blur", photo, "--skip-existing").code == 0
    assert (tmp_path / "outputs/blur/photo.png").read_text() == "mine"
    assert run("annotate.py", "blur", photo, "--overwrite").code == 0
    assert pixels(tmp_path / "outputs/blur/photo.png").shape == (300, 400, 3)


def test_a_damaged_image_does_not_stop_the_others(run, photo: Path, tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(photo.read_bytes()[:1000])
    outcome = run("annotate.py", "threshold", tmp_path / "bad.png", photo)
    assert outcome.code == 2 and "1 of 2 images cannot be annotated" in outcome.err
    assert "bad.png: it ends too early" in outcome.err
    assert [path.name for path in (tmp_path / "outputs/threshold").iterdir()] == ["photo.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cany", "photo.png"), "unknown annotator 'cany': expected one of canny, .*did you mean 'canny'"),
        (("canny",), "the following arguments are required: IMAGE.FOLDER"),
        (("canny", "absent.png"), "cannot open image absent.png: there is no such file"),
        (("canny", "empty"), "empty: contains no images"),
        (("canny", "photo.png", "--low", 300), "--low-threshold: got '300', expected a whole number from 1"),
        (("canny", "photo.png", "--sigma", 3), "--sigma"),
        (("canny", "photo.png", "photo.png"), "would both become outputs/canny/photo.png"),
        (("canny", "photo.png", "--out", "x.jpg"), "maps are written as PNG"),
        (("blur", "photo.png", "--overwrite", "--skip-existing"), "give one of them"),
        (("canny", "photo.png", "--out", ".", "--overwrite"), "photo.png: the map would replace its image"),
        (("mlsd", "photo.png"), "M-LSD needs its weights: give --annotator-weights mlsd_large_512_fp32"),
        (("pose", "photo.png"), "OpenPose's body network needs its weights: give --annotator-weights"),
        (("hed", "photo.png", "--annotator-weights", "other.pth"), "other.pth is M-LSD .*; expected HED"),
        (("hed", "photo.png", "--annotator-weights", "photo.png"), "photo.png"),
        (("seg", "photo.png"), "photo.png: .* colours are of no ADE20K class"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(run, photo: Path, tmp_path: Path, words, message: str):
    (tmp_path / "empty").mkdir()
    torch.save({"block23.conv3.weight": torch.ones(1)}, tmp_path / "other.pth")
    outcome = run("annotate.py", *words)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: ") and re.search(message, outcome.err)
    assert not (tmp_path / "outputs").exists()


def test_help_names_every_annotator_and_the_options_of_one(run):
    outcome = run("annotate.py", "--help")
    assert all(f"\n  {kind} " in outcome.out for kind in KINDS) and "--low" not in outcome.out
    outcome = run("annotate.py", "canny", "--help")
    assert "--low N" in outcome.out and "(default: 512)" in outcome.out
