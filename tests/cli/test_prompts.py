"""How prompts are read, from the command line to the images' metadata."""

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_models import tiny_config, tiny_model

from ldm.imaging import metadata

QUICK = ("--steps", 2, "--H", 64, "--W", 64, "--n_iter", 1, "--n_samples", 1, "--no-grid", "--scale", 5)
LONG = "a red cat, " * 30


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def weights(request, tmp_path_factory) -> tuple:
    """Return the flags of a tiny model; its text encoder takes 77 tokens (sd1) or 12 (sd2)."""
    folder = tmp_path_factory.mktemp(request.param)
    config = tiny_config(request.param, folder)
    stored = {name: x.contiguous() for name, x in tiny_model(config).state_dict().items()}
    save_file(stored, folder / "model.safetensors")
    return "--config", config, "--ckpt", folder / "model.safetensors", "--prediction", "eps"


@pytest.fixture
def make(run, tmp_path, weights):
    """Return a function: flags -> images (n, h, w, 3), their records, what was said."""

    def make(*flags, script="txt2img.py"):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        outcome = run(script, *QUICK, *weights, "--outdir", folder, *flags)
        assert outcome.code == 0, outcome.err
        files = sorted((folder / "samples").iterdir())
        images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        return images, [metadata.read_record(file) for file in files], outcome.out + outcome.err

    return make


@pytest.mark.few(1)
def test_brackets_and_braces_are_text_by_default(make):
    text, cut = "((a:1.2)) {b|c}", ("--long-prompts", "cut")
    plain, (record,), _ = make("--prompt", text, *cut)
    escaped, _, _ = make("--prompt", r"\(\(a:1.2\)\) {b|c}", "--prompt-syntax", "a1111", *cut)
    assert record["prompt"] == text
    assert not {"prompt_syntax", "clip_skip"} & record["request"].keys()
    assert (plain == escaped).all()


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("syntax", "text"), [("a1111", "a (red:1.6) [cat]"), ("compel", "a (red)1.6 cat-")]
)
def test_weights_change_the_image_and_are_recorded(make, syntax, text):
    weighed, (record,), _ = make("--prompt", text, "--prompt-syntax", syntax)
    plain, _, _ = make("--prompt", "a red cat")
    assert (weighed != plain).any()
    assert (record["prompt"], record["resolved"]["prompt_syntax"]) == (text, syntax)


@pytest.mark.few(1)
@pytest.mark.parametrize("syntax", ["a1111", "compel"])
def test_without_signs_every_syntax_makes_the_plain_image(make, syntax):
    plain, _, _ = make("--prompt", "a red cat", "--negative-prompt", "dog")
    read, _, _ = make("--prompt", "a red cat", "--negative-prompt", "dog", "--prompt-syntax", syntax)
    assert (read == plain).all()


@pytest.mark.few(1)
def test_long_prompts_are_encoded_whole_and_it_is_said_once(make):
    whole, _, said = make("--prompt", LONG, "--negative-prompt", LONG + "!", "--n_samples", 2, "--n_iter", 2)
    assert said.count("prompt has 120 tokens: encoded in ") == 1
    assert said.count("negative prompt has 121 tokens: encoded in ") == 1
    cut, (record,), said = make("--prompt", LONG, "--negative-prompt", LONG + "!", "--long-prompts", "cut")
    assert "prompt has 120 tokens: cut after" in said and record["resolved"]["long_prompts"] == "cut"
    assert (whole[0] != cut[0]).any()


@pytest.mark.few(1)
def test_short_and_long_prompts_stand_in_one_batch(make, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"cat\n{LONG}\n")
    images, records, _ = make("--from-file", tmp_path / "prompts.txt", "--n_samples", 2)
    assert [record["prompt"] for record in records] == ["cat", LONG]
    alone, _, _ = make("--prompt", "cat", "--n_samples", 2)
    assert abs(images[0].astype(int) - alone[0]).max() <= 1  # the long one beside it changes nothing


@pytest.mark.few(1)
def test_clip_skip_is_counted_as_elsewhere(make, weights):
    own, changed = (1, 2) if "sd1" in str(weights[1]) else (2, 1)
    usual, _, _ = make("--prompt", "cat")
    same, (record,), _ = make("--prompt", "cat", "--clip-skip", own)
    other, _, _ = make("--prompt", "cat", "--clip-skip", changed)
    assert record["resolved"]["clip_skip"] == own
    assert (same == usual).all() and (other != usual).any()


@pytest.mark.few(1)
def test_combinations_are_images_of_their_own(make, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "colour.txt").write_text("red\nblue\n")
    flags = "--prompt", "a __colour__ {cat|dog}", "--wildcards", tmp_path / "w", "--n_samples", 3
    _, records, _ = make(*flags, "--combinations", "all")
    assert [record["prompt"] for record in records] == ["a red cat", "a red dog", "a blue cat", "a blue dog"]
    assert records[0]["request"]["prompt"] == "a __colour__ {cat|dog}"
    _, drawn, _ = make(*flags, "--combinations", "random", 5, "--seed", 3)
    _, again, _ = make(*flags, "--combinations", "random", 5, "--seed", 3)
    assert len(drawn) == 5 and [r["prompt"] for r in drawn] == [r["prompt"] for r in again]


@pytest.mark.few(1)
def test_every_line_of_a_file_is_a_template(make, tmp_path):
    (tmp_path / "prompts.txt").write_text("{a|b}\nc\n")
    flags = "--from-file", tmp_path / "prompts.txt", "--repeat", 2, "--combinations", "all"
    _, records, _ = make(*flags)
    assert [record["prompt"] for record in records] == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--prompt", "a (b", "--prompt-syntax", "compel"), "'a (b', character 3: '(' is never closed"),
        (("--negative-prompt", "a) b", "--prompt-syntax", "compel"), "character 2: ')' has no opening"),
        (("--prompt-syntax", "a11"), "got 'a11', expected one of plain, a1111, compel"),
        (("--clip-skip", 0), "got '0', expected a whole number from 1 up"),
        (("--clip-skip", 99), "clip skip 99; this model's text encoder takes 1 to 4"),
        (("--combinations", "some"), "got 'some', expected all, or random N"),
        (("--combinations", "random", "0"), "got '0', expected a whole number from 1 to 100000"),
        (("--prompt", "{a", "--combinations", "all"), "character 1: '{' is never closed"),
        (("--wildcards", "x"), "add --combinations all, or random N"),
        (("--wildcards", "x", "--combinations", "all"), "there is no folder x"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, flags, says):
    outcome = run("txt2img.py", "--outdir", tmp_path / "out", *flags)
    assert outcome.code == 2 and says in outcome.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_bad_line_of_a_file_is_named(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("fine\nnot (fine\n")
    outcome = run("img2img.py", "--from-file", tmp_path / "prompts.txt", "--prompt-syntax", "compel")
    assert outcome.code == 2
    assert "prompts.txt, line 2: prompt 'not (fine', character 5: '(' is never closed" in outcome.err
