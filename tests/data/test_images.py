"""A folder of images with captions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.images import CaptionedImages
from ldm.errors import InputError


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


@pytest.mark.parametrize("make", [lambda p: None, lambda p: (p / "a.png").write_bytes(b"no image")])
def test_what_cannot_be_used_is_an_error(tmp_path, make):
    make(tmp_path)
    with pytest.raises(InputError):
        CaptionedImages(str(tmp_path), size=8).batch(torch.Generator(), 1)
    with pytest.raises(InputError, match="no folder"):
        CaptionedImages(str(tmp_path / "missing"), size=8)
