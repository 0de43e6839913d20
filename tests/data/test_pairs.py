"""prompt.json: pairs of a map and an image, as the data set fill50k has them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.config import instantiate
from ldm.data.pairs import PromptJson
from ldm.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Three pairs whose source is the target's negative, of a level that names the pair."""
    lines = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 40, 3), np.uint8)
        pixels[..., 2] = 50 * i
        for name, image in (("target", pixels), ("source", 255 - pixels)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
        files = {key: f"{key}/{i}.png" for key in ("source", "target")}
        lines.append(json.dumps({**files, "prompt": f"image {i}"}))
    (tmp_path / "prompt.json").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"mirror": True, "random_crop": True}])
def test_source_target_and_prompt_belong_together(folder, options):
    data = PromptJson(str(folder), size=24, **options)
    images, prompts, given = data.batch(torch.Generator().manual_seed(0), 12)
    assert images.shape == given["hint"].shape == (12, 3, 24, 24) and len(set(prompts)) == 3
    torch.testing.assert_close(given["hint"], (1 - images) / 2)  # cropped and flipped alike
    levels = (images[:, 2, 0, 0] + 1) * 127.5 / 50
    assert prompts == [f"image {round(float(level))}" for level in levels]


def test_an_item_is_the_reference_s(folder):
    item = PromptJson(str(folder), size=24)[1]
    pixels = np.asarray(Image.open(folder / "target" / "1.png"), np.float32)
    assert item["txt"] == "image 1" and item["jpg"].dtype == item["hint"].dtype == np.float32
    np.testing.assert_allclose(item["jpg"], pixels / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(item["hint"], (255 - pixels) / 255, atol=1e-6)


def test_a_configuration_may_name_the_tutorial_s_data_set(folder):
    node = {"target": "tutorial_dataset.MyDataset", "params": {"path": str(folder), "size": 24}}
    data = instantiate(node, "data")
    assert isinstance(data, PromptJson) and len(data) == 3


def test_a_part_is_held_out(folder):
    parts = [PromptJson(str(folder), 24, split=s, held_out_every=2) for s in ("train", "held_out")]
    assert [part.captions for part in parts] == [["image 1"], ["image 0", "image 2"]]


GOOD = '{"source": "source/0.png", "target": "target/0.png", "prompt": "a"}'
WRONG = {
    "not JSON": (GOOD + "\n{", "prompt.json, line 2: is not JSON"),
    "a list": ("[]", "expected an object with source, target and prompt"),
    "no prompt": ('{"source": "source/0.png", "target": "target/0.png"}', "line 1: expected source,"),
    "no file": (GOOD.replace("source/0", "source/9"), "source/9.png does not exist"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_one_line(folder, case):
    text, said = WRONG[case]
    (folder / "prompt.json").write_text(text)
    with pytest.raises(InputError, match=said) as raised:
        PromptJson(str(folder), 24)
    assert "\n" not in str(raised.value)


def test_a_folder_without_a_table_and_a_damaged_image_are_refused(folder):
    with pytest.raises(InputError, match=r"prompt.json: no such file"):
        PromptJson(str(folder / "source"), 24)
    (folder / "source" / "1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of 6 images cannot be read: source/1.png"):
        PromptJson(str(folder), 24)
    assert PromptJson(str(folder), 24, skip_bad=True).captions == ["image 0", "image 2"]


def test_a_source_of_other_proportions_is_refused(folder):
    Image.new("RGB", (24, 24)).save(folder / "source" / "0.png")
    with pytest.raises(InputError, match=r"source/0.png and .*target/0.png have other .*40x24"):
        PromptJson(str(folder), 24)[0]
