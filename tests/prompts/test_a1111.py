"""The attention syntax of AUTOMATIC1111's interface: documented examples, corners, and any text at all."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.prompts import a1111
from ldm.prompts.syntaxes import parse


def read(text: str) -> list[list[tuple[str, float]]]:
    (clause,) = a1111.parse(text).clauses
    return [[(fragment.text, fragment.weight) for fragment in part] for part in clause]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("\\(literal\\]", [("(literal]", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                ("a ", 1),
                ("house", 1.3 * 1.1 * 1.1),
                (" ", 1.1),
                ("on", 1),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.1**4),
                (".", 1.1),
            ],
        ),
        ("((x))", [("x", 1.21)]),
        ("[x]", [("x", 1 / 1.1)]),
        ("[[x]] y", [("x", 1 / 1.21), (" y", 1)]),
        ("(x: 1.5 )", [("x", 1.5)]),
        ("(x:-.5)", [("x", -0.5)]),
        ("(a (b:2):3)", [("a ", 3), ("b", 6)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("[a:1.5]", [("a:1.5", 1 / 1.1)]),
        ("at 5:30) and ] on", [("at 5:30) and ] on", 1)]),
        ("([a)]", [("a", 1)]),
        ("[x", [("x", 1 / 1.1)]),
        ("\\\\ \\x \\", [("\\ x ", 1)]),
        ("(x:1.0) y", [("x y", 1)]),
        ("", []),
        ("()[]", []),
    ],
)
def test_attention(text, expected):
    (part,) = read(text)
    assert [text for text, _ in part] == [text for text, _ in expected]
    assert [weight for _, weight in part] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("a\nBREAK\nb", [["a"], ["b"]]),
        ("a BREAK BREAK b", [["a"], [], ["b"]]),
        ("BREAK a", [[], ["a"]]),
        ("a BREAK", [["a"]]),
        ("BREAKFAST break", [["BREAKFAST break"]]),
        ("(a BREAK b)", [["a"], ["b"]]),
    ],
)
def test_break_begins_a_new_part(text, expected):
    assert [[text for text, _ in part] for part in read(text)] == expected


def test_a_weight_holds_on_both_sides_of_a_break():
    assert read("(a BREAK b:1.5) c") == [[("a", 1.5)], [("b", 1.5), (" c", 1)]]


SIGNS = st.text(alphabet="ab :.,-+0123456789()[]\\\nBREAK", max_size=60)


@given(st.text() | SIGNS)
def test_no_text_is_wrong(text):
    a1111.parse(text)


@given(st.text() | SIGNS)
def test_escaped_text_is_read_as_itself(text):
    text = text.replace("BREAK", "")
    (clause,) = a1111.parse(a1111.escape(text)).clauses
    assert [[(f.text, f.weight) for f in part] for part in clause] == [[(text, 1)] if text else []]


WORDS = st.text(alphabet="abc ,:.é猫", min_size=1, max_size=5)
TREES = st.recursive(
    WORDS.map(lambda word: (word, word)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda all: ("".join(w for w, _ in all), "".join(t for _, t in all))),
        inner.map(lambda part: (f"({part[0]})", part[1])),
        inner.map(lambda part: (f"[{part[0]}]", part[1])),
        st.tuples(inner, st.floats(0, 2)).map(lambda pair: (f"({pair[0][0]}:{pair[1]:.2f})", pair[0][1])),
    ),
    max_leaves=10,
)  # (what is written, its text)


@given(TREES)
def test_the_fragments_together_are_the_text_without_syntax(tree):
    written, text = tree
    assert "".join(text for part in read(written) for text, _ in part) == text


@given(st.text(alphabet="ab )]", max_size=20))
def test_what_was_never_opened_is_text(text):
    assert "".join(word for part in read(text) for word, _ in part) == text


def test_weights_without_end_are_refused_when_used():
    with pytest.raises(InputError, match=re.escape("the weight of 'x' is infinite")):
        parse("(x:" + "9" * 400 + ")", "a1111")


def test_thousands_of_brackets_are_read():
    ((fragment,),) = a1111.parse("[" * 3000 + "x").clauses[0]
    assert fragment.weight < 1e-100
