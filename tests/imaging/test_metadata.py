"""The metadata of an image can be read back, by this toolkit and by those who read `parameters`."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from ldm.errors import InputError
from ldm.imaging import metadata

RECORD = {
    "version": "1.2.3",
    "prompt": "a lighthouse, stormy sea",
    "seed": 42,
    "width": 640,
    "height": 427,
    "index_in_batch": 1,
    "resolved": {
        "negative_prompt": "blurry: yes, very",
        "sampler": "dpm",
        "steps": 20,
        "eta": 0.0,
        "scale": 7.5,
        "strength": 0.8,
        "n_samples": 3,
    },
    "model": {"checkpoint": "my, model.safetensors", "sha256": "0123456789abcdef" * 4},
}


def parse_parameters(text: str) -> dict[str, str]:
    """Read `parameters` as its readers do: the prompts, then one line of keys and values."""
    *lines, last = text.split("\n")
    fields = dict(re.findall(r'\s*([\w ]+):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)', last))
    fields = {key: json.loads(value) if value.startswith('"') else value for key, value in fields.items()}
    whole = "\n".join(lines)
    prompt, _, negative = whole.partition("\nNegative prompt: ")
    return {"prompt": prompt, "negative": negative, **fields}


def written(tmp_path, record):
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png", pnginfo=metadata.png_chunks(record))
    return tmp_path / "image.png"


def test_parameters_parse_back(tmp_path):
    with Image.open(written(tmp_path, RECORD)) as image:
        fields = parse_parameters(image.text["parameters"])
    assert fields == {
        "prompt": "a lighthouse, stormy sea",
        "negative": "blurry: yes, very",
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "CFG scale": "7.5",
        "Seed": "42",
        "Size": "640x427",
        "Model hash": "0123456789",
        "Model": "my, model",
        "Denoising strength": "0.8",
        "Batch size": "3",
        "Batch pos": "1",
        "Version": "ldm 1.2.3",
    }


@pytest.mark.parametrize(
    ("sampler", "schedule", "fields"),
    [
        ("dpmpp_2m", "karras", {"Sampler": "DPM++ 2M", "Schedule type": "Karras", "Eta": "0.5"}),
        ("euler_a", "linspace", {"Sampler": "Euler a", "Eta": "0.5"}),
        ("ddim", "reference", {"Sampler": "DDIM", "Eta DDIM": "0.5"}),
        ("deis", "exponential", {"Sampler": "deis", "Schedule type": "Exponential", "Eta": "0.5"}),
    ],
)
def test_parameters_name_samplers_and_schedules_as_their_readers_do(tmp_path, sampler, schedule, fields):
    options = RECORD["resolved"] | {"sampler": sampler, "schedule": schedule, "eta": 0.5}
    record = RECORD | {"resolved": options}
    with Image.open(written(tmp_path, record)) as image:
        got = parse_parameters(image.text["parameters"])
    assert {name: got.get(name) for name in ("Sampler", "Schedule type", "Eta", "Eta DDIM")} == {
        name: fields.get(name) for name in ("Sampler", "Schedule type", "Eta", "Eta DDIM")
    }


def test_the_record_reads_back_whole(tmp_path):
    assert metadata.read_record(written(tmp_path, RECORD)) == RECORD


@given(st.text(max_size=200))
@example("\0\x1b[2Jclear\r\n../../etc/passwd <script> =cmd() \ud800 \u202e rtl")
@example("灯台 🗼 " * 20_000)
def test_any_prompt_survives_in_the_record(tmp_path_factory, prompt):
    path = written(tmp_path_factory.mktemp("odd"), RECORD | {"prompt": prompt})
    assert metadata.read_record(path)["prompt"] == prompt
    with Image.open(path) as image:
        assert "\0" not in image.text["parameters"]


def test_an_image_without_metadata_is_an_error(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="no metadata"):
        metadata.read_record(tmp_path / "plain.png")


def test_a_missing_image_is_named_as_missing(tmp_path):
    with pytest.raises(InputError, match=r"none\.png: there is no such file; expected an image"):
        metadata.read_record(tmp_path / "none.png")
