"""Options as fields: what is declared once gives reading, bounds, records and forms."""

import json
import math
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.requests import NAMES, Field, Txt2Img, Unclip, build, fields_of, find, form, option, record, request
from ldm.requests.groups import Prompts

REQUESTS = [find(name) for name in NAMES]
EVERY = [(cls, each) for cls in REQUESTS for each in fields_of(cls).values()]
BOUNDED = [(cls, each) for cls, each in EVERY if each.option.low is not None]


def ids(pairs: list[tuple[type, Field]]) -> list[str]:
    return [f"{cls.__name__}-{each.name}" for cls, each in pairs]


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20).filter(
    lambda text: not text.startswith("~")
)
# of the options that have a reader of their own
SPECIAL = {
    "prompts": st.lists(WORDS, max_size=3),
    "seed": st.integers(0, 2**32 - 1),
    "combinations": st.one_of(st.just("all"), st.tuples(st.just("random"), st.integers(1, 99))),
    "guidance_interval": st.sampled_from([(0, 1), (0.2, 0.8), "0.1,0.4"]),
    "dynamic_threshold": st.floats(0.01, 1),
    "hires": st.floats(1.01, 4),
    "max_memory": st.sampled_from([None, "auto", "8GB", "6.5GiB", 2**30]),
    "mix_noise_level": st.one_of(st.just("off"), st.integers(0, 999)),
    "sha256": st.sampled_from(["0" * 64, "AB" * 32]),
    "controls": st.lists(
        st.fixed_dictionaries(
            {"kind": st.sampled_from(["map", "canny"]), "image": WORDS.filter(bool)},
            optional={"weight": st.floats(0, 10), "start": st.floats(0, 0.4), "end": st.floats(0.5, 1)},
        ),
        max_size=3,
    ),
}


def values_of(each: Field) -> st.SearchStrategy[Any]:
    """Return the values that an option may have."""
    about = each.option
    if about.read is not None and not each.choices:
        return SPECIAL[each.name]
    if each.choices:
        one = st.sampled_from(each.choices)
    elif each.kind is bool:
        one = st.booleans()
    elif each.kind in (int, float):
        low, high = about.low, about.high
        whole = st.integers(-99 if low is None else low, 9999 if high is None else high)
        one = whole if each.kind is int else st.one_of(whole, whole.map(str))
    else:
        one = WORDS
    return st.lists(one, min_size=1, max_size=3) if each.many else one


@st.composite
def requests(draw: st.DrawFn) -> Any:
    cls = draw(st.sampled_from(REQUESTS))
    chosen = draw(st.lists(st.sampled_from(list(fields_of(cls).values())), max_size=5, unique_by=id))
    return cls(**{each.name: draw(values_of(each)) for each in chosen})


@settings(max_examples=300, deadline=None)
@given(requests())
def test_a_request_goes_through_json_and_comes_back_equal(made):
    for whole in (False, True):
        stored = json.loads(json.dumps(record(made, whole)))
        assert build(type(made), stored) == made
    assert stored.keys() == fields_of(type(made)).keys()


@pytest.mark.parametrize("cls", REQUESTS)
def test_what_is_not_given_is_not_in_the_record(cls):
    assert record(cls()) == {} and record(cls(seed=42, steps=7)) == {"steps": 7}


@pytest.mark.parametrize(("cls", "each"), BOUNDED, ids=ids(BOUNDED))
def test_bounds_hold_at_both_ends_and_errors_name_the_option(cls, each):
    low, high = each.option.low, each.option.high
    assert getattr(cls(**{each.name: low}), each.name) in (low, (low,))
    wrong = [low - 1, str(low - 1), math.nan, "much", None if not each.may_be_none else math.inf, True]
    if high is not None:
        assert getattr(cls(**{each.name: str(high)}), each.name) in (high, (high,))
        wrong.append(high + 1)
    for value in wrong:
        with pytest.raises(InputError, match=f"^{each.name}: got .*, expected a (whole )?number from {low}"):
            cls(**{each.name: value})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("steps", 1.5, "steps: got 1.5, expected a whole number from 1 up"),
        ("rng", "philox", "rng: got 'philox', expected one of reference, per-image, gpu-philox"),
        ("zero_snr", "yes", "zero_snr: got 'yes', expected true or false"),
        ("prompt", 7, "prompt: got 7, expected text"),
        ("prompts", [7], r"prompts: got \[7\], expected a list of texts"),
        ("seed", -1, "seed: got -1, .*no value means random"),
        ("device", None, "device: got None, expected text"),
    ],
)
def test_a_wrong_value_says_what_was_given_and_what_is_expected(name, value, says):
    with pytest.raises(InputError, match=says):
        build(Txt2Img, {name: value})


def test_values_are_read_from_text_and_lists():
    values = {"steps": "20", "scale": "7.5", "zero_snr": "true", "guidance_interval": [0.2, 0.8]}
    made = build(Txt2Img, values)
    assert made == Txt2Img(steps=20, scale=7.5, zero_snr=True, guidance_interval=(0.2, 0.8))
    assert Txt2Img(combinations=["random", 3]) == Txt2Img(combinations="random 3")
    assert Unclip(noise_level="5").noise_level == (5,)
    assert Unclip(image_weights=[1, -0.5]).image_weights == (1, -0.5)


@pytest.mark.parametrize("cls", REQUESTS)
def test_an_unknown_name_is_refused_with_the_nearest(cls):
    with pytest.raises(InputError, match=f"{cls.__name__} has no option 'stepz'; did you mean 'steps'?"):
        build(cls, {"stepz": 5})


def test_a_request_never_changes():
    with pytest.raises(AttributeError):
        Txt2Img().steps = 5


@pytest.mark.parametrize(("cls", "each"), EVERY, ids=ids(EVERY))
def test_every_option_is_documented_and_its_default_is_a_value(cls, each):
    about = each.option
    assert about.help and about.help[0].islower() is not about.help[0].isupper()
    assert not about.help.endswith(".") and "(default" not in about.help
    assert all(flag.startswith("--") for flag in about.flags)
    assert each.read(each.default) == each.default
    if about.usual is not None:
        assert each.default is None and each.read(about.usual) == about.usual
    if about.low is not None and about.high is not None:
        assert about.low < about.high


@pytest.mark.parametrize("cls", REQUESTS)
def test_a_form_has_a_component_for_every_option_with_a_flag(cls):
    rows = {row["name"]: row for row in form(cls)}
    assert rows.keys() == {name for name, each in fields_of(cls).items() if each.option.flags}
    assert json.loads(json.dumps(list(rows.values())))
    expected = {
        "prompt": "text", "seed": "number", "steps": "number", "guidance_rescale": "slider",
        "rng": "choice", "fixed_code": "checkbox", "ckpt": "file", "init_img": "file", "height": "slider",
    }  # fmt: skip
    for name in expected.keys() & rows.keys():
        assert rows[name]["component"] == expected[name], name
    assert rows["steps"]["default"] == fields_of(cls)["steps"].option.usual
    assert (rows["guidance_rescale"]["low"], rows["guidance_rescale"]["high"]) == (0, 1)
    assert rows["rng"]["choices"] == ("reference", "per-image", "gpu-philox")
    assert rows["outdir"]["default"] == f"outputs/{cls.__name__.lower()}-samples"


def test_a_class_of_its_own_declares_options_groups_and_defaults():
    @request(prompt="a fox", count=5)
    class Sketch(Prompts):
        """Draw a sketch."""

        SECTION = ("sketch", "a note")
        count: int | None = option(None, "--count", low=1, usual=3, help="how many lines")
        ink: Literal["black", "blue"] = option("black", "--ink", help="colour of the lines")

    fields = fields_of(Sketch)
    assert list(fields) == ["prompt", "from_file", "count", "ink", "negative_prompt", "prompts"]
    assert fields["count"].section == ("sketch", "a note") and fields["prompt"].section == ("prompt", "")
    assert fields["count"].option.usual == 5, "None stays the model's own"
    assert (Sketch().prompt, Sketch().count, Sketch(ink="blue").ink) == ("a fox", None, "blue")
