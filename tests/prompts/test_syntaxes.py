"""What a prompt syntax reads, and the advice on what it does not read."""

import pytest

from ldm.prompts.syntaxes import advice


@pytest.mark.parametrize(
    ("text", "syntax", "expected"),
    [
        ("a <lora:x:0.8> cat", "plain", "'<lora:x:0.8>' in a prompt is plain text: LoRAs"),
        ("a <lora:x:0.8> cat", "a1111", "LoRAs"),
        ("a (red:1.2) cat", "plain", "--prompt-syntax a1111"),
        ("a ((red)) cat", "plain", "--prompt-syntax a1111"),
        ("a cat BREAK a dog", "plain", "--prompt-syntax a1111"),
        ("a (red:1.2) cat", "a1111", None),
        ("a red++ cat", "plain", "--prompt-syntax compel"),
        ("a (red hat)1.2", "plain", "--prompt-syntax compel"),
        ("a red++ cat", "compel", None),
        ("a (red hat:.5) cat", "plain", "'(red hat:.5)' in a prompt is plain text: --prompt-syntax a1111"),
        ("a (hat: 2) cat", "plain", "--prompt-syntax a1111"),
        ("a (cat:-1)", "plain", "--prompt-syntax a1111"),
        ("(studio 54:1.2)", "plain", "--prompt-syntax a1111"),
        ("(红色:3)", "plain", "--prompt-syntax a1111"),
        ("a blurry-- cat", "plain", "--prompt-syntax compel"),
        ("a 红++ cat", "plain", "--prompt-syntax compel"),
        ("a (red hat)+, a cat", "plain", "--prompt-syntax compel"),
        ('a "red hat"++', "plain", "--prompt-syntax compel"),
        ("a {red|green} cat", "plain", "--combinations all"),
        ("a __colour__ cat", "plain", "--combinations all"),
        ("a poster (16:9), a photo (3:2)", "plain", None),
        ("wide (ratio 16:9), (at 10:30), (John 3:16), (John 3:2)", "plain", None),
        ("(word:12), (word:3.5), (word:100)", "plain", None),
        ("a book on C++, g++ and A++ (C++)", "plain", None),
        ("a (red)-haired man, C++17, 18++", "plain", None),
        ("a [cat:dog:0.5]", "a1111", "'[cat:dog:0.5]' in a prompt is plain text: a prompt cannot change"),
        ("a [cat|dog]", "plain", "cannot change"),
        ("a cat AND a dog", "plain", "'AND' in a prompt is plain text: it does not combine"),
        ("a cat AND a dog", "a1111", "does not combine"),
        ("a cat (2001), well-known -- 16:9, f/1.8 [sic] a_b", "plain", None),
    ],
)
def test_what_other_tools_read_and_this_syntax_does_not_is_said(text, syntax, expected):
    found = advice(text, syntax)
    assert found is None if expected is None else expected in found


def test_alternatives_that_are_expanded_need_no_advice():
    assert advice("{a|b} __c__", "plain", expands=True) is None
