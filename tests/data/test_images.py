"""A folder of images with captions."""

import json
import logging
import os
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import ldm.data.folder as folder_of_images
from ldm.data.images import CaptionedImages, read_image
from ldm.errors import InputError
from ldm.training.building import build_data


@pytest.fixture
def folder(tmp_path):
    """Four images: one grey level each, so that a batch says which image it shows."""
    for index in range(4):
        Image.new("RGB", (20 + index, 16), (50 * index,) * 3).save(tmp_path / f"{index}.png")
    return tmp_path


def draw(data, count=64, seed=0):
    images, captions = data.batch(torch.Generator().manual_seed(seed), count)
    levels = ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
    return images, captions, [level // 50 for level in levels]


def test_captions_from_text_files(folder):
    for index in range(4):
        (folder / f"{index}.txt").write_text(f"image {index}\n")
    images, captions, shown = draw(CaptionedImages(str(folder), size=8))
    assert images.shape == (64, 3, 8, 8) and set(shown) == {0, 1, 2, 3}
    assert captions == [f"image {index}" for index in shown]


def test_captions_from_jsonl_and_csv(folder):
    rows = [{"file_name": f"{i}.png", "text": f"line {i}"} for i in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (folder / "other.csv").write_text("file_name,caption\n" + "".join(f"{i}.png,row {i}\n" for i in range(4)))
    _, captions, shown = draw(CaptionedImages(str(folder), size=8))
    assert captions == [f"line {i}" for i in shown]
    _, captions, shown = draw(CaptionedImages(str(folder), size=8, captions="other.csv"))
    assert captions == [f"row {i}" for i in shown]


def test_a_bad_line_is_named(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n{"file_name": \n')
    with pytest.raises(InputError, match="line 2"):
        CaptionedImages(str(folder), size=8)


def test_splits_share_nothing(folder):
    train, held_out = (
        CaptionedImages(str(folder), size=8, split=s, held_out_every=3) for s in ("train", "held_out")
    )
    assert [f.name for f in held_out.files] == ["0.png", "3.png"]
    assert [f.name for f in train.files] == ["1.png", "2.png"]


def test_draws_depend_on_the_generator_alone(folder):
    data = CaptionedImages(str(folder), size=8, mirror=True, random_crop=True, memory_mb=0)
    kept = CaptionedImages(str(folder), size=8, mirror=True, random_crop=True)
    assert torch.equal(draw(data, seed=5)[0], draw(kept, seed=5)[0])
    assert data.kept == {} and len(kept.kept) == 4


def test_transparent_images_get_the_background(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    images, _ = CaptionedImages(str(tmp_path), size=8, background=0).batch(torch.Generator(), 1)
    assert torch.equal(images, -torch.ones(1, 3, 8, 8))


def test_16_bit_images_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / "deep.png")
    images, _ = CaptionedImages(str(tmp_path), size=8).batch(torch.Generator(), 1)
    torch.testing.assert_close(images, torch.full((1, 3, 8, 8), 100 / 127.5 - 1))


def test_what_cannot_be_used_is_an_error(tmp_path):
    with pytest.raises(InputError, match="contains no images"):
        CaptionedImages(str(tmp_path), size=8)
    with pytest.raises(InputError, match="there is no such folder"):
        CaptionedImages(str(tmp_path / "missing"), size=8)
    with pytest.raises(InputError, match="held_out_every 1: expected 2"):
        CaptionedImages(str(tmp_path), size=8, held_out_every=1)


def many(folder, count: int = 30) -> None:
    for index in range(count):
        Image.new("RGB", (8, 8), (index,) * 3).save(folder / f"{index:02d}.png")


def test_every_bad_image_is_named_at_the_start_in_one_message(tmp_path):
    many(tmp_path)
    whole = (tmp_path / "03.png").read_bytes()
    (tmp_path / "03.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "17.png").write_text("no image")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/deep.webp").write_bytes(b"RIFF")
    for split in ("all", "train", "held_out"):
        with pytest.raises(InputError) as error:
            CaptionedImages(str(tmp_path), size=8, split=split)
        text = str(error.value)
        assert "3 of 31 images cannot be read" in text and "skip_bad: true" in text and "\n" not in text
        assert "03.png (" in text and "17.png (not an image" in text and "sub/deep.webp (" in text
        assert "complete?" in text and text.count(str(tmp_path)) == 1


def test_bad_images_are_left_out_on_request(tmp_path, caplog):
    many(tmp_path)
    (tmp_path / "00.png").write_text("no image")
    data = CaptionedImages(str(tmp_path), size=8, skip_bad=True)
    assert len(data) == 29 and "1 of 30 images cannot be read: 00.png" in caplog.text
    assert len(data.captions) == 29 and 0 not in {int(f.stem) for f in data.files}


def test_the_message_is_bounded_however_many_are_bad(tmp_path):
    for index in range(300):
        (tmp_path / f"{index}{'x' * 100}.png").write_text("no image")
    with pytest.raises(InputError, match="300 of 300 images cannot be read.*and 280 more") as error:
        CaptionedImages(str(tmp_path), size=8)
    assert len(str(error.value)) < 6000


def test_images_are_checked_once_and_again_after_a_change(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    many(tmp_path / "data", 6)
    checked = []
    monkeypatch.setattr(folder_of_images, "_fault", lambda file: checked.append(file.name) or "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        CaptionedImages(str(tmp_path / "data"), size=8)
    assert sorted(checked) == [f"{i:02d}.png" for i in range(6)]
    Image.new("RGB", (9, 9)).save(tmp_path / "data/02.png")
    CaptionedImages(str(tmp_path / "data"), size=8)
    assert checked[6:] == ["02.png"]
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text('{"damaged": 7')
    CaptionedImages(str(tmp_path / "data"), size=8)
    assert len(checked) == 13


def test_damaged_metadata_and_warnings_are_no_reason_to_refuse(tmp_path, caplog, recwarn):
    many(tmp_path, 2)
    data = (tmp_path / "00.png").read_bytes()
    exif = struct.pack(">I", 6) + b"eXIfMM\0*\0\0" + struct.pack(">I", zlib.crc32(b"eXIfMM\0*\0\0"))
    (tmp_path / "00.png").write_bytes(data[:33] + exif + data[33:])
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(tmp_path / "clear.png")
    with caplog.at_level(logging.INFO):
        data = CaptionedImages(str(tmp_path), size=8, memory_mb=0)
        data.batch(torch.Generator().manual_seed(0), 8)
    assert not recwarn.list and caplog.messages == [f"{tmp_path}: 3 of 3 images without a caption"]


def test_clutter_is_left_out_and_counted(tmp_path, caplog):
    many(tmp_path, 3)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in (".ipynb_checkpoints/00-checkpoint.png", "._00.png", ".hidden.jpg"):
        (tmp_path / name).write_bytes((tmp_path / "00.png").read_bytes())
    for name in ("__MACOSX/set/00.png", "sub/@eaDir/00/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes((tmp_path / "00.png").read_bytes())
    for name in ("Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "x.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "z.jpg").touch()
    for name in ("a.heic", "b.HEIC", "c.svg", "notes.txt", "model.safetensors"):
        (tmp_path / name).write_text("x")
    with caplog.at_level(logging.INFO):
        data = CaptionedImages(str(tmp_path), size=8)
    assert [f.name for f in data.files] == ["00.png", "01.png", "02.png"]
    assert "left out 3 in system folders, 3 hidden, 3 no regular file, 1 empty" in caplog.text
    assert "left out 2 .heic, 1 .svg, which cannot be read" in caplog.text


def test_a_hidden_folder_above_is_no_clutter(tmp_path):
    (tmp_path / ".cache/set").mkdir(parents=True)
    many(tmp_path / ".cache/set", 2)
    assert len(CaptionedImages(str(tmp_path / ".cache/set"), size=8)) == 2


@pytest.mark.parametrize("suffix", ["jfif", "JPG", "jpe", "tif", "TIFF", "gif", "ppm", "avif", "bmp", "webp"])
def test_other_endings_are_read_or_named(tmp_path, caplog, suffix):
    many(tmp_path, 1)
    name = f"b.{suffix}"
    kind = {"jfif": "JPEG", "jpe": "JPEG"}.get(suffix)
    try:
        Image.new("RGB", (8, 8), (200,) * 3).save(tmp_path / name, kind)
    except (KeyError, ValueError, OSError):  # a Pillow without this format
        (tmp_path / name).write_bytes(b"x")
    names = [f.name for f in CaptionedImages(str(tmp_path), size=8).files]
    assert name in names or f"1 .{suffix}" in caplog.text


@pytest.mark.parametrize("size", [(1, 9000), (9000, 1), (3, 4000), (2, 2)])
def test_thin_images_are_cropped_before_they_are_enlarged(tmp_path, size):
    Image.new("RGB", size, (90,) * 3).save(tmp_path / "thin.png")
    image = read_image(tmp_path / "thin.png", 64, 255)
    assert min(image.shape[1:]) == 64 and max(image.shape[1:]) <= 4 * 64
    data = CaptionedImages(str(tmp_path), size=64, random_crop=True)
    assert data.batch(torch.Generator().manual_seed(0), 2)[0].shape == (2, 3, 64, 64)


def test_one_image_is_trained_on_and_that_is_said(tmp_path, caplog):
    many(tmp_path, 1)
    with caplog.at_level(logging.INFO):
        train, held_out = (CaptionedImages(str(tmp_path), size=8, split=s) for s in ("train", "held_out"))
    assert len(train) == len(held_out) == 1
    assert caplog.text.count("one image, which is trained on; nothing is held out") == 1


def test_no_caption_at_all_is_refused_where_captions_are_learnt(tmp_path):
    many(tmp_path, 3)
    with pytest.raises(InputError, match="no image has a caption.*no_captions: true"):
        CaptionedImages(str(tmp_path), size=8).check_captions()
    CaptionedImages(str(tmp_path), size=8, no_captions=True).check_captions()
    (tmp_path / "01.caption").write_text("one")
    CaptionedImages(str(tmp_path), size=8).check_captions()


@pytest.mark.parametrize(
    "params",
    [{"size": 0}, {"size": -64}, {"memory_mb": -1}, {"background": 256}, {"background": -1}],
    ids=str,
)
def test_a_number_out_of_its_range_is_refused(tmp_path, params):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (name,) = params
    with pytest.raises(InputError, match=f"^{name} .*expected"):
        CaptionedImages(str(tmp_path), **params)


def test_every_path_of_a_configuration_may_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "c.csv").write_text("file_name,text\na.png,a cat\nb.png,a dog~\n")
    params = {"path": "~/photos", "captions": "~/c.csv", "size": 8}
    config = {"data": {"target": "ldm.data.images.CaptionedImages", "params": params}}
    assert build_data(config, "data").captions == ["a cat", "a dog~"]
    assert config["data"]["params"] is params and params["captions"] == "~/c.csv", "config.yaml keeps ~"
    params["captions"] = "~/d.csv"
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'd.csv'}: no such file")):
        build_data(config, "data")
