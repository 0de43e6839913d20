"""The words that a small model does not know are named."""

from pathlib import Path

import pytest

from ldm.errors import ConfigError
from ldm.jobs.vocabulary import advice

DEMO = Path(__file__).parents[2] / "configs" / "demo"
KNOWS = DEMO / "emoji_knows.json"


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "3d emoji of a cat, blue background",
        "flat emoji of two red apples next to a dog",
        "3D EMOJI of 3 hamburgers",
        "3d emoji of a cat's face",
        *[line for line in (DEMO / "drawn.txt").read_text().splitlines() if line[:1] != "#"],
    ],
)
def test_words_that_the_demo_knows_need_no_word(prompt):
    assert advice([prompt], KNOWS) is None


@pytest.mark.parametrize(
    "prompts, unknown",
    [
        (["a lighthouse"] * 3, "'lighthouse';"),
        (["a cat, white background"], "'white';"),
        (["xa xb cat xc xd", "xa xe"], "'xa', 'xb', 'xc', 'xd' and 1 more;"),
        (["灯台"], "'灯台';"),
    ],
)
def test_other_words_are_named_with_examples(prompts, unknown):
    said = advice(prompts, KNOWS)
    assert unknown in said and "red heart" in said and str(DEMO / "drawn.txt") in said
    assert "white without a word" in said and "\n" not in said


def test_a_command_says_it_once(run):
    flags = "--H", 64, "--W", 64, "--steps", 1, "--n_samples", 1, "--n_iter", 2
    outcome = run("txt2img.py", *flags, "--prompt", "a lighthouse")
    assert outcome.code == 0 and outcome.out.count("does not know 'lighthouse'") == 1
    out = run("txt2img.py", *flags, "--prompt", "3d emoji of a skull").out
    assert "does not know" not in out and "watermark" not in out


def test_a_list_that_was_copied_without_its_parts_counts_as_none(tmp_path):
    (tmp_path / "knows.json").write_text(KNOWS.read_text())
    assert advice(["a lighthouse"], tmp_path / "knows.json") is None


def test_a_broken_list_is_one_clear_error(tmp_path):
    (tmp_path / "knows.json").write_text('{"words": "a"}')
    with pytest.raises(ConfigError, match="knows.json: cannot be read"):
        advice(["x"], tmp_path / "knows.json")
