"""compel's syntax, read and encoded as the library itself does it."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from requesting import encoder_of

from ldm.errors import InputError
from ldm.prompts import compel

# The words and weights of these are what the library reads from them too.
PROMPTS = [
    "",
    "a red apple",
    "a red+ apple",
    "a red++ apple--",
    "cat+, dog. fox",
    "a (red apple)+ cat",
    "a (red)1.3 apple",
    "(a).5 cat",
    "a tall (cat (red apple)1.3)1.1",
    "(a (red)1.3 cat-)1.1 apple",
    "((a red)1.5 apple)0.5",
    "(red+, cat)1.2 apple",
    "(a cat)+ (red apple)+",
    "a (cat)+ b+",
    '"red apple"+ cat',
    'a "red apple" cat',
    'a 5" nail+ and a 6" one',
    "\\(a\\) cat",
    "\\(a\\)+ cat",
    "well-known- cat",
    "a+b 1 + 1 c -- d",
    "f(x) y",
    "(a) (cat) apple",
    "(red)0 cat",
    "a:b+ [c]+ d_e+",
    "  a \n red+ \t cat ",
]
JOINED = [
    '("red+","cat").and()',
    '("red+", "a cat").and(1, 0.5)',
    '("red apple+","cat-").blend(1, 0.5)',
    '("red apple","cat").blend(1, -3)',
    '("red apple","cat").blend(0.7, 0.9, no_normalize)',
]


@pytest.mark.parametrize("text", PROMPTS)
def test_words_and_weights_are_the_librarys(text):
    from compel import Compel

    def words(fragments):
        """Return the weight of every word; both join words differently around signs."""
        return [(w, pytest.approx(f.weight)) for f in fragments for w in re.findall(r"\w+|[^\w\s]", f.text)]

    (theirs,) = Compel.parse_prompt_string(text).prompts
    assert words(compel.parse(text).fragments()) == words(theirs.children)


@pytest.mark.few(18)
@pytest.mark.parametrize("text", [*PROMPTS, *JOINED])
def test_contexts_are_the_librarys(model, transformers_text, text):
    from compel import Compel

    theirs = Compel(*transformers_text)(text)
    ours = encoder_of(model, "compel").encode([text])
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


def test_long_prompts_are_the_librarys(model, transformers_text):
    from compel import Compel
    from compel.embeddings_provider import SplitLongTextMode

    text = "red cat " * 40 + "apple++ blue- " + "fox " * 40 + "(a dog)0.7"
    brutal = SplitLongTextMode.BRUTAL  # every 75 tokens, whatever they are
    theirs = Compel(*transformers_text, truncate_long_prompts=False, split_long_text_mode=brutal)(text)
    ours = encoder_of(model, "compel").encode([text])
    assert ours.shape[1] > model.cond_stage_model.vocabulary().context_length
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a (b", "character 3: '(' is never closed"),
        ("((a)", "character 1: '(' is never closed"),
        ("b) c", "character 2: ')' has no opening bracket"),
        ("cat.swap(dog)", "character 4: .swap() is not supported"),
        ('x ("a","b").and()', "character 12: .and() joins whole prompts"),
        ('("a", "b) c").and()', "character 9: ')' has no opening bracket"),
        ('("a","b").blend(1)', "got '1', expected 2 numbers"),
        ('("a","b").and(1, x)', "expected 2 numbers"),
        ('("a","b").blend(1, inf)', "expected 2 numbers"),
        ('("a","b").blend(1, -1)', "add up to 0"),
    ],
)
def test_bad_syntax_is_named_with_its_place(text, says):
    with pytest.raises(InputError, match=re.escape(says)):
        compel.parse(text)


@given(st.text() | st.text(alphabet='ab .,+-0123()"\\', max_size=40))
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        compel.parse(text)
    except InputError as error:
        assert re.search(r"character \d+: ", str(error)) and "\n" not in str(error)


@given(st.text(alphabet="ab .,:;!?é猫'", max_size=40))
def test_text_without_signs_stays_as_it_is(text):
    assert "".join(fragment.text for fragment in compel.parse(text).fragments()) == text.lstrip()
