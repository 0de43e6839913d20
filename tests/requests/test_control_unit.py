"""What one --control says, as text, JSON and Python values, there and back."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.errors import InputError
from ldm.requests import Txt2Img, build, form, record
from ldm.requests.control_unit import read_unit, read_units
from ldm.tasks.steering import read_controls

FULL = {"kind": "canny", "image": "x.png", "weight": 0.8, "start": 0, "end": 0.6, "settings": {"low": 50}}


def test_text_and_json_say_the_same():
    assert read_unit("canny,low=50:x.png@0.8[0-0.6]") == read_unit(FULL) == read_unit({**FULL, "end": "0.6"})
    assert read_unit({"kind": "CANNY", "file": "x.png"}) == read_unit("canny:x.png")
    assert read_units(["canny:x.png", {"kind": "Map", "image": "y.png"}])[1] == read_unit("map:y.png")


def test_a_record_builds_the_same_request():
    request = build(Txt2Img, {"controls": [FULL, "map:y.png", "canny"], "control_ckpt": ["a.pth"]})
    assert build(Txt2Img, json.loads(json.dumps(record(request)))) == request
    assert record(request)["controls"][1:] == [{"kind": "map", "file": "y.png"}, {"kind": "canny"}]


def test_images_may_be_arrays_and_pil_images():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    for image in (pixels, Image.fromarray(pixels)):
        request = build(Txt2Img, {"controls": [{"kind": "map", "image": image}]})
        (unit,) = read_controls(request).controls
        assert np.array_equal(unit.image.values, pixels)
        assert json.loads(json.dumps(record(request)))["controls"] == [{"kind": "map", "file": None}]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"kind": "mpa", "image": "x.png"}, "unknown annotator 'mpa'.*did you mean 'map'"),
        ({"kind": 5, "image": "x.png"}, "got 5, expected a kind of control"),
        ({"kind": None, "image": "x.png"}, "got None, expected a kind"),
        ("k" * 500 + ":x.png", r"unknown annotator 'k+': expected one of map, inpaint, canny"),
        ({"kind": "depth", "image": "x.png", "settings": {"depth": np.zeros((9, 9))}}, "depth: got array"),
        ({"image": "x.png"}, "a control needs a kind"),
        ("./face.png", "'./face.png' is a file without a kind; write KIND:FILE, such as canny:./face.png"),
        ({"kind": "canny", "image": ""}, "the file name is empty"),
        ({"kind": "canny", "image": "a.png", "file": "b.png"}, "give one of them"),
        ({"kind": "canny", "image": "x.png", "wieght": 1}, "did you mean 'weight'"),
        ({"kind": "canny", "image": "x.png", "interval": [0, 1]}, "it has kind, image, weight, start"),
        ({"kind": "canny", "image": "x.png", "settings": "low"}, "settings: got 'low', expected names"),
        ({"kind": "canny", "image": "x.png", "settings": {"lo": 1}}, "did you mean 'low'"),
        ({"kind": "canny", "image": "x.png", "weight": True}, "weight: got True"),
        ({"kind": "canny", "image": "x.png", "end": float("nan")}, "end: got nan"),
        (3, "got 3, expected KIND:FILE"),
        ("canny:x.png@11", "weight: got '11', expected a number from 0 to 10"),
        ("canny:x.png[-]", "start: got ''"),
    ],
)
def test_what_is_no_control_is_one_bounded_line(value, words):
    with pytest.raises(InputError, match=words) as caught:
        read_controls(build(Txt2Img, {"controls": [value]}))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("image", [3, ["x.png"], {"a": 1}, np.zeros((16, 16)), np.zeros((16, 16, 3))])
def test_what_is_no_image_is_refused_when_it_is_read(image):
    with pytest.raises(InputError, match="--control canny: "):
        read_controls(build(Txt2Img, {"controls": [{"kind": "canny", "image": image}]}))


def test_a_weight_in_the_wrong_place_is_explained(tmp_path):
    for text in ("canny:x.png[0.1-0.2]@0.5", "canny:x.png[0.2]"):
        with pytest.raises(InputError, match=r"the order is canny:FILE@WEIGHT\[START-END\]"):
            read_controls(build(Txt2Img, {"controls": [text]}))


def test_a_form_takes_a_line_for_each_control():
    rows = {row["name"]: row for row in form(Txt2Img)}
    assert rows["controls"]["component"] == "text" and rows["controls"]["many"]
    assert rows["control_ckpt"]["component"] == "file" and rows["guess"]["component"] == "checkbox"
    assert rows["control_mode"]["choices"] == ("balanced", "prompt", "control")


@pytest.mark.parametrize("option", [{"save_control": True}, {"guess": True}, {"control_resolution": 64}])
def test_options_of_controls_require_a_control(option):
    flag = "--" + next(iter(option)).replace("_", "-")
    with pytest.raises(InputError, match=f"^{flag} requires --control KIND:FILE$"):
        read_controls(Txt2Img(**option))
