"""The grammar of captions."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.captions import (
    BACKGROUNDS,
    WHITE,
    article,
    caption,
    caption_tags,
    everyday_name,
    is_mirrorable,
    is_plural,
    noun_phrase,
)
from demo.source import read_labels

WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("red apple", "a red apple"),
        ("owl", "an owl"),
        ("umbrella", "an umbrella"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("unamused face", "an unamused face"),
        ("hourglass done", "an hourglass"),
        ("x-ray", "an x-ray"),
        ("ufo", "a ufo"),
        ("scissors", "scissors"),
        ("cherries", "cherries"),
        ("french fries", "french fries"),
        ("glasses", "glasses"),
        ("dice", "dice"),
        ("two hearts", "two hearts"),
        ("film frames", "film frames"),
        ("wine glass", "a wine glass"),
        ("bus", "a bus"),
        ("octopus", "an octopus"),
        ("cactus", "a cactus"),
        ("compass", "a compass"),
        ("dress", "a dress"),
        ("nest with eggs", "a nest with eggs"),
        ("face with tears of joy", "a face with tears of joy"),
        ("smiling face with sunglasses", "a smiling face with sunglasses"),
        ("sun", "the sun"),
        ("Statue of Liberty", "the Statue of Liberty"),
        ("bread", "a loaf of bread"),
        ("popcorn", "popcorn"),
        ("cooked rice", "cooked rice"),
        ("rice ball", "a rice ball"),
        ("locked", "a closed padlock"),
        ("basketball", "a basketball"),
        ("three o’clock", "three o’clock"),
        ("ZZZ", "ZZZ"),
    ],
)
def test_a_label_gets_the_article_that_english_wants(label, phrase):
    assert noun_phrase(label) == phrase


@given(WORDS)
def test_a_phrase_keeps_its_label(word):
    label = f"small {word}"
    expected = {label} if is_plural(label) else {label, f"a {label}"}
    assert noun_phrase(label) in expected


@given(st.sampled_from("bcdfgjklmnpqrstvwyz"), WORDS)
def test_a_consonant_wants_a(letter, word):
    assert article(letter + word) == "a"


@given(
    st.sampled_from(["3d", "flat", "noto"]),
    WORDS.map(noun_phrase),
    st.none() | WORDS.map(noun_phrase),
    st.none() | WORDS,
    st.none() | st.sampled_from(sorted(BACKGROUNDS)),
)
def test_captions_can_be_parsed_back(style, phrase, second, tag, colour):
    text = caption(phrase, style, second=second, tag=tag, colour=colour)
    objects = r"(3d|flat|noto) emoji of ([^,]+?)(?: next to ([^,]+?))?"
    found = re.fullmatch(objects + r"(?:, ([a-z]+))?(?:, (\w+) background)?", text)
    assert found is not None
    assert found.groups() == (style, phrase, second, tag, colour)


def test_tags_are_plain_words_that_the_label_lacks():
    assert caption_tags("dog face", ["dog", "pet", "lol", "puppies", "animal"]) == ["pet", "animal"]
    assert caption_tags("sun", ["wtv", "sun", "weather"]) == ["weather"]


@pytest.mark.parametrize(
    "label",
    ["alarm clock", "three o’clock", "one-thirty", "magnifying glass tilted left", "taxi", "musical note",
     "1st place medal", "pool 8 ball", "waxing crescent moon", "hundred points",
     "calendar", "heart with arrow"],
)  # fmt: skip
def test_letters_clocks_and_directions_are_not_mirrored(label):
    assert not is_mirrorable(label)


@pytest.mark.parametrize("label", ["dog face", "red apple", "top hat", "rocket", "shopping bags"])
def test_the_rest_is_mirrored(label):
    assert is_mirrorable(label)


def test_everyday_names():
    assert everyday_name("automobile", "travel") == "car"
    assert everyday_name("dog face", "animals") == "dog"
    assert everyday_name("grinning face", "faces") == "happy face"
    assert everyday_name("rocket", "travel") is None


def test_ten_colours_are_told_apart_easily():
    assert len(BACKGROUNDS) == 10
    colours = np.array([*BACKGROUNDS.values(), WHITE], dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert distances[~np.eye(len(colours), dtype=bool)].min() > 60


def test_familiar_concepts_are_unique_and_many(repository_root):
    labels = read_labels(repository_root / "configs" / "demo" / "concepts.txt")
    assert len(labels) == len(set(labels))
    assert len(labels) > 150
