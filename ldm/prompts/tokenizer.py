"""CLIP's tokenizer: byte-level byte-pair encoding of lower-cased text (arXiv 1508.07909; 2103.00020, 2.4).

    text -> clean: fix mojibake, unescape HTML entities twice, collapse white space, lower case
         -> words: contractions such as 's, runs of letters, single digits, runs of other characters
         -> the UTF-8 bytes of a word, each as one visible character, the last one marked with </w>
         -> merge the pair of neighbours that comes first in the list of merges, until none is listed

The vocabulary is numbered in this order: 256 bytes, 256 bytes that end a word, the merges, start, end.
"""

import gzip
import html
import zlib
from collections.abc import Iterable
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import regex

from ldm.clip_files import merges_file
from ldm.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

START, END = "<start_of_text>", "<end_of_text>"
END_OF_WORD = "</w>"
MAX_MERGES = 49_152 - 256 - 2       # CLIP reads only this many lines of its file
MAX_CACHED = 100_000                # words whose ids are cached

WORDS = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)


class Tokenizer:
    """Text -> token ids.

    Args:
        bpe_path: gzipped file of merges, one pair per line after a header line; None: CLIP's own.
        context_length: number of ids that a call returns for a text.

    Raises:
        ConfigError: `bpe_path` is not such a file.
    """

    def __init__(self, bpe_path: str | Path | None = None, context_length: int = 77) -> None:
        self.merges = read_merges(merges_file() if bpe_path is None else bpe_path)
        self.context_length = context_length
        letters = list(BYTES.values())
        symbols = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, self.merges)]
        self.encoder = {symbol: i for i, symbol in enumerate([*symbols, START, END])}
        self.bpe_ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.sot_token_id = self.encoder[START]
        self.eot_token_id = self.encoder[END]
        self._known = {START: [self.sot_token_id], END: [self.eot_token_id]}

    @property
    def vocab_size(self) -> int:
        return len(self.encoder)

    @cached_property
    def decoder(self) -> dict[int, str]:
        """The inverse vocabulary: id -> symbol."""
        return {i: symbol for symbol, i in self.encoder.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start and end."""
        return [i for word in WORDS.findall(clean(text)) for i in self._ids(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, with a space after every word; invalid UTF-8 becomes U+FFFD."""
        letters = "".join(self.decoder[i] for i in ids)
        text = bytes(BYTE_OF[letter] for letter in letters).decode("utf-8", errors="replace")
        return text.replace(END_OF_WORD, " ")

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> "Tensor":
        """Return ids (b, context_length): start, text, end, zeros; a long text is cut before the end."""
        import torch

        length = context_length or self.context_length
        rows = torch.zeros(1 if isinstance(texts, str) else len(texts), length, dtype=torch.long)
        for row, text in zip(rows, [texts] if isinstance(texts, str) else texts, strict=True):
            ids = [*[self.sot_token_id, *self.encode(text)][: length - 1], self.eot_token_id]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def _ids(self, word: str) -> list[int]:
        if word not in self._known:
            if len(self._known) >= MAX_CACHED:
                self._known = {special: self._known[special] for special in (START, END)}
            letters = [BYTES[byte] for byte in word.encode("utf-8")]
            letters[-1] += END_OF_WORD
            self._known[word] = [self.encoder[symbol] for symbol in self._merged(letters)]
        return self._known[word]

    def _merged(self, symbols: list[str]) -> list[str]:
        """Merge neighbours: the pair of lowest rank first, everywhere it occurs, from left to right.

        With a priority queue of pairs and a linked list of symbols, a word of n bytes takes O(n log n).
        """
        length = len(symbols)
        before, after = list(range(-1, length - 1)), list(range(1, length + 1))
        queue = [
            (self.bpe_ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in self.bpe_ranks
        ]
        heapify(queue)
        while queue:
            rank = queue[0][0]
            first, second = self.merges[rank]
            grown = []
            while queue and queue[0][0] == rank:
                _, i = heappop(queue)
                j = after[i]
                if symbols[i] != first or j == length or symbols[j] != second:  # already merged with another
                    continue
                symbols[i], symbols[j] = first + second, ""
                after[i] = after[j]
                if after[i] < length:
                    before[after[i]] = i
                grown.append(i)
            for i in grown:
                for left, right in ((before[i], i), (i, after[i])):
                    if left < 0 or right == length:
                        continue
                    pair = (symbols[left], symbols[right])
                    if pair in self.bpe_ranks:
                        heappush(queue, (self.bpe_ranks[pair], left))
        return [symbol for symbol in symbols if symbol]


def read_merges(path: str | Path) -> list[tuple[str, ...]]:
    """Return the pairs of a gzipped file of merges, in order of rank."""
    try:
        with gzip.open(path) as file:
            lines = file.read().decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"merges {path}: {error}; expected CLIP's gzipped file, a pair per line") from error
    return [tuple(line.split()) for line in lines[1 : 1 + MAX_MERGES]]


def clean(text: str) -> str:
    """Fix the encoding of `text`, unescape HTML entities, collapse white space, and lower the case."""
    if not text.isascii() or not text.isprintable() or "&" in text:     # else there is nothing to fix
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _visible_bytes() -> dict[int, str]:
    """Return a visible character for each byte: its Latin-1 character, or the next one from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTES = _visible_bytes()            # in the order of the vocabulary
BYTE_OF = {letter: byte for byte, letter in BYTES.items()}
