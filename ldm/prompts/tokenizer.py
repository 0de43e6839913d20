"""CLIP's tokenizer: byte-level byte-pair encoding of lower-cased text (arXiv 1508.07909; 2103.00020, 2.4).

    text -> clean: mojibake mended, HTML entities read twice, white space to single blanks, lower case
         -> words: endings such as 's, runs of letters, single digits, runs of other signs
         -> a word's UTF-8 bytes, each written as one visible character, the last with the mark </w>
         -> of all neighbours the pair that the merges list first becomes one symbol, until none is listed

Ids count the vocabulary through: 256 bytes, 256 bytes that end a word, one for each merge, start, end.
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
MAX_MERGES = 49_152 - 256 - 2       # the lines that CLIP reads of its longer file
MAX_CACHED = 100_000                # words whose ids are remembered

WORDS = regex.compile(
    rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)


class Tokenizer:
    """Text -> token ids.

    Args:
        bpe_path: merges, gzipped, one pair a line below a line of heading; None: CLIP's own.
        context_length: ids that a call returns for a text.

    Raises:
        ConfigError: `bpe_path` cannot be read as such.
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
        """The vocabulary the other way: id -> symbol."""
        return {i: symbol for symbol, i in self.encoder.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without start and end."""
        return [i for word in WORDS.findall(clean(text)) for i in self._ids(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, with a blank behind every word; bytes that are no text become U+FFFD."""
        letters = "".join(self.decoder[i] for i in ids)
        text = bytes(BYTE_OF[letter] for letter in letters).decode("utf-8", errors="replace")
        return text.replace(END_OF_WORD, " ")

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> "Tensor":
        """Return ids (b, context_length): start, text, end, then zeros; a long text is cut before the end."""
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
        """Merge neighbours, the pair of lowest rank first and everywhere, from left to right.

        A queue of pairs and links between the symbols left keep this at n log n for a word of n bytes.
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
                if symbols[i] != first or j == length or symbols[j] != second:      # merged otherwise by now
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
    """Return the pairs of a gzipped file of merges, the first to be merged first."""
    try:
        with gzip.open(path) as file:
            lines = file.read().decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"merges {path}: {error}; expected CLIP's gzipped text, a pair a line") from error
    return [tuple(line.split()) for line in lines[1 : 1 + MAX_MERGES]]


def clean(text: str) -> str:
    """Return `text` mended, without HTML entities, lower-cased, with single blanks for white space."""
    if not text.isascii() or not text.isprintable() or "&" in text:     # else there is nothing to mend
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _visible_bytes() -> dict[int, str]:
    """Return a visible character for each byte: itself in Latin-1, or the next from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTES = _visible_bytes()            # in the order of the vocabulary
BYTE_OF = {letter: byte for byte, letter in BYTES.items()}
