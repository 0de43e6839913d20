"""Templates and what they stand for."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.prompts.combinations import MAX_PROMPTS, Combinations


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a red apple", ["a red apple"]),
        ("", [""]),
        ("{red|green} apple", ["red apple", "green apple"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{|very }red", ["red", "very red"]),
        ("{one}", ["one"]),
        ("{a|a}", ["a", "a"]),
        ("({red|blue}:1.2) x|y [z]", ["(red:1.2) x|y [z]", "(blue:1.2) x|y [z]"]),
        (r"\{a\|b\} \(c\)", [r"{a|b} \(c\)"]),
        ("cost $5 # no", ["cost $5 # no"]),
        ("snake_case __ and ____", ["snake_case __ and ____"]),
    ],
)
def test_alternatives(text, prompts):
    assert Combinations().all(text) == prompts


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "food").mkdir()
    files = {
        "colour.txt": "\ufeff# the warm ones\nred\n\n  green  \n",
        "food/fruit.txt": "{ripe|raw} apple\nplum",
        "dark_blue.txt": "navy",
        "fairytale adult.txt": "elf",
        "v1.2 (old).txt": "one\u2028line",
        "naïve & co.txt": "n",
        "both.txt": "__colour__ __food/fruit__",
        "empty.txt": "# nothing\n",
        "one.txt": "__two__",
        "two.txt": "__one__",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "bytes.txt").write_bytes(b"\xff")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("a __colour__ cat", ["a red cat", "a green cat"]),
        ("__food/fruit__", ["ripe apple", "raw apple", "plum"]),
        ("__dark_blue____dark_blue__", ["navynavy"]),
        ("__fairytale adult__, __v1.2 (old)__", ["elf, one\u2028line"]),
        ("{__naïve & co__|__fairytale adult__}", ["n", "elf"]),
        (r"\__colour\__ a\_b", ["__colour__ a_b"]),
        ("a __ and __dark_blue__", ["a __ and navy"]),
        ("{__colour__|pink}", ["red", "green", "pink"]),
        ("__both__", [f"{c} {f}" for c in ("red", "green") for f in ("ripe apple", "raw apple", "plum")]),
    ],
)
def test_wildcards(folder, text, prompts):
    assert Combinations(folder).all(text) == prompts


def test_the_folder_may_be_outside_of_the_working_folder(folder, monkeypatch):
    (folder / "food" / "here").mkdir()
    monkeypatch.chdir(folder / "food" / "here")
    assert Combinations("../..").all("__dark_blue__") == ["navy"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a {b|c", r"character 3: '{' is never closed"),
        ("a} b", r"character 2: '}' has no opening brace"),
        ("{2$$a|b}", "character 2: '2$$' is not supported"),
        ("{0.5::a|b}", "character 2: '0.5::' is not supported"),
        ("{" * 60 + "a" + "}" * 60, "character 51: braces are nested deeper than 50"),
        ("{a|b}" * 40, f"1,099,511,627,776 prompts; expected at most {MAX_PROMPTS:,}"),
        ("a __color__", "No such file or directory; did you mean __colour__?"),
        ("__empty__", "contains no values"),
        ("__fairytale  adult__", "did you mean __fairytale adult__?"),
        ("__v1.3__", "No such file or directory"),
        ("a __colour cat", "character 3: wildcard __colour is never closed"),
        ("a __ colour __", r"character 3: wildcard __ colour __: write __colour__, without blanks"),
        ("__ food/fruit__ cat", r"character 1: wildcard __ food/fruit__: write __food/fruit__"),
        ("__fairytale\u00a0__", "character 1: wildcard __fairytale\u00a0__: write __fairytale__"),
        ("__../secret__", "its file must be in --wildcards"),
        ("__/etc/passwd__", "its file must be in --wildcards"),
        ("__one__", "in a circle: one -> two -> one"),
        ("__bytes__", "not UTF-8"),
    ],
)
def test_bad_templates_are_named_with_their_place(folder, text, says):
    with pytest.raises(InputError, match=re.escape(says)):
        Combinations(folder).all(text)


def test_an_error_does_not_change_what_the_next_template_gives(folder):
    """A wildcard file that could not be read is no part of a circle afterwards."""
    (folder / "new.txt").write_text("{broken\n")
    combinations = Combinations(folder)
    for _ in range(2):
        with pytest.raises(InputError, match="'{' is never closed"):
            combinations.all("__new__")
    (folder / "new.txt").write_text("whole\n")
    assert combinations.all("a __new__") == ["a whole"]


def test_wildcards_need_a_folder(tmp_path):
    with pytest.raises(InputError, match="give the folder of the wildcard files with --wildcards DIR"):
        Combinations().all("__colour__")
    with pytest.raises(InputError, match="no folder"):
        Combinations(tmp_path / "nowhere")


def test_drawing_follows_the_seed():
    text = "{a|b|c} {d|e|f|{g|h}}"
    drawn = Combinations().random(text, 200, seed=7)
    assert drawn == Combinations().random(text, 200, seed=7)
    assert drawn[:5] == Combinations().random(text, 5, seed=7)
    assert drawn != Combinations().random(text, 200, seed=8)
    assert set(drawn) == set(Combinations().all(text))
    assert drawn[:6] == ["a d", "b d", "b e", "a f", "a e", "a d"]  # on any machine


def test_alternatives_are_drawn_alike():
    drawn = Combinations().random("{a|b|c|d}", 4000, seed=0)
    assert all(900 < drawn.count(letter) < 1100 for letter in "abcd")


@given(st.text(alphabet="ab {}|\\_$:1", max_size=40))
def test_any_text_is_expanded_or_refused_in_one_line(text):
    try:
        prompts = Combinations().all(text)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert prompts and set(Combinations().random(text, 3, seed=1)) <= set(prompts)
