"""Token ids against those of open_clip, for any text."""

import gzip
import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from script_files import REPOSITORY

from ldm.errors import ConfigError
from ldm.prompts import tokenizer as module
from ldm.prompts.tokenizer import Tokenizer

DEMO = REPOSITORY / "configs/demo/emoji_bpe.txt.gz"
OURS, THEIRS = Tokenizer(), SimpleTokenizer()

PIECES = [
    "a photo of", " ", "\t\n", "\u00a0", "\u3000", "'s", "'LL", "\u2019re", "don't", "4k", "1234567", "½²",
    "&amp;amp;lt;", "&lt;b&gt;", "&eacute;", "&#x1F600;", "&#xD800;", "&notanentity", "schÃ¶n",
    "â€œquoteâ€\x9d", "\u0130stanbul", "STRASSE ß", "\u017f", "Ⅳ", "...!!!", "-_-", "a_b", "((a:1.2))",
    "<start_of_text>", "<END_OF_TEXT>", "<\u017ftart_of_text>", "<|endoftext|>", "日本語", "한국어",
    "👩\u200d👩\u200d👧", "🇩🇪", "❤\ufe0f", "नमस्ते", "e\u0301", "العربية", "ﬁﬂ", "Ａ１", "\\", "\udc80",
    "\x00", "\x1b[31m", "\x7f", "\u200b", "\ufeff", "\ufffd",
]
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(st.characters(max_codepoint=127), max_size=60),
    st.text(st.characters(max_codepoint=0x24F), max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.text("ab", min_size=30, max_size=400),
    st.text("aeinrst", min_size=100, max_size=600),
)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("")
@example("".join(PIECES))
@example("a" * 5000)
def test_any_text_gets_the_ids_of_open_clip(text):
    assert OURS.encode(text) == THEIRS.encode(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.sampled_from([3, 12, 77]))
def test_rows_are_padded_and_cut_as_by_open_clip(texts, length):
    assert OURS(texts, length).tolist() == THEIRS(texts, length).tolist()


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_ids_become_text_as_by_open_clip(text):
    ids = OURS.encode(text)
    assert OURS.decode(ids) == THEIRS.decode(ids)


def test_one_text_is_one_row():
    assert OURS("a fox").shape == (1, 77)
    assert OURS("a fox", 5).tolist() == [[49406, 320, 3240, 49407, 0]]


@pytest.mark.parametrize("path", [None, DEMO], ids=["clip", "demo"])
def test_the_vocabulary_is_that_of_open_clip(path):
    ours = Tokenizer(path)
    theirs = SimpleTokenizer(*([] if path is None else [str(path)]))
    assert ours.encoder == theirs.encoder and ours.bpe_ranks == theirs.bpe_ranks
    assert (ours.sot_token_id, ours.eot_token_id) == (theirs.sot_token_id, theirs.eot_token_id)
    assert (ours.vocab_size, ours.decoder) == (theirs.vocab_size, theirs.decoder)
    text = "flat emoji of a grinning fox, yellow background 🦊" * 9
    assert ours.encode(text) == theirs.encode(text)


@st.composite
def merges_lists(draw) -> list[tuple[str, str]]:
    """Pairs of symbols that are there by then; training never makes one symbol from two pairs, this does."""
    inner, last = ["a", "b", "c"], ["a</w>", "b</w>", "c</w>"]
    pairs = []
    for _ in range(draw(st.integers(0, 25))):
        first, second = draw(st.sampled_from(inner)), draw(st.sampled_from(inner + last))
        (last if second in last else inner).append(first + second)
        pairs.append((first, second))
    return draw(st.permutations(pairs))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(merges_lists(), st.lists(st.text("abc", min_size=1, max_size=40), max_size=4).map(" ".join))
@example([("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")], "abc ababcabc")
def test_any_merges_are_applied_as_by_open_clip(tmp_path_factory, merges, text):
    path = tmp_path_factory.getbasetemp() / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#", *map(" ".join, merges)]).encode()))
    assert Tokenizer(path).encode(text) == SimpleTokenizer(str(path)).encode(text)


def test_cached_words_are_bounded_and_travel(monkeypatch):
    monkeypatch.setattr(module, "MAX_CACHED", 5)
    tokenizer = Tokenizer(DEMO)
    text = "one two three four five six seven <start_of_text> eight nine ten"
    assert tokenizer.encode(text) == tokenizer.encode(text) == Tokenizer(DEMO).encode(text)
    assert len(tokenizer._known) <= 5
    assert pickle.loads(pickle.dumps(tokenizer)).encode(text) == tokenizer.encode(text)


def bad_files() -> dict[str, bytes | None]:
    whole = gzip.compress(b"#\na b\n" * 50)
    return {"missing": None, "plain": b"#\na b\n", "cut": whole[:-9], "latin-1": gzip.compress(b"#\n\xe9 a")}


@pytest.mark.parametrize("content", bad_files().values(), ids=bad_files())
def test_what_holds_no_merges_is_one_clear_error(tmp_path, content):
    path = tmp_path / "merges.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"merges .*merges\.gz: .*; expected CLIP's gzipped file"):
        Tokenizer(path)
