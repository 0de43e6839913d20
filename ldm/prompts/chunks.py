"""Split the tokens of a prompt into chunks of the text encoder's length.

    chunk = start, up to `context_length - 2` tokens of text, end, padding up to context_length

A text encoder has as many positions as it was trained with (77 for Stable Diffusion). A longer prompt is
encoded in several chunks, whose states are concatenated in the context. The padding depends on the encoder:
CLIP as in SD 1.x repeats the end token, OpenCLIP uses zeros.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ldm.prompts.fragments import Clause, Fragment

COMMA_REACH = 20        # A1111's default of "prompt word wrap length limit"
SPECIAL = -1            # owner of start, end and padding tokens


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of an encoder."""

    encode: Callable[[str], list[int]]      # text -> token ids, without start and end
    start: int
    end: int
    pad: int
    context_length: int

    @property
    def room(self) -> int:
        """The number of text tokens that fit into a chunk."""
        return self.context_length - 2


@dataclass
class Chunk:
    """context_length token ids with the weight of each, and the index of its fragment in the clause."""

    tokens: list[int]
    weights: list[float]
    owners: list[int] = field(repr=False)


@dataclass(frozen=True)
class _Token:
    number: int
    weight: float
    owner: int


def chunks(clause: Clause, vocabulary: Vocabulary, comma_reach: int = 0) -> list[Chunk]:
    """Return the chunks of a clause, at least one. Each part of the clause starts a new chunk.

    Args:
        comma_reach: a full chunk ends after its last comma instead, if that is among its last `comma_reach`
            tokens and the next token is not a comma.
    """
    comma = vocabulary.encode(",") if comma_reach else []
    made: list[Chunk] = []
    owner = 0
    for part in clause:
        tokens = _tokens(part, vocabulary, owner)
        owner += len(part)
        made += [_chunk(piece, vocabulary) for piece in _pieces(tokens, vocabulary.room, comma, comma_reach)]
    return made


def count(clause: Clause, vocabulary: Vocabulary) -> int:
    """Return the number of text tokens of a clause."""
    return sum(len(vocabulary.encode(fragment.text)) for part in clause for fragment in part)


def _tokens(part: Sequence[Fragment], vocabulary: Vocabulary, first: int) -> list[_Token]:
    return [
        _Token(number, fragment.weight, owner)
        for owner, fragment in enumerate(part, start=first)
        for number in vocabulary.encode(fragment.text)
    ]


def _pieces(tokens: list[_Token], room: int, comma: list[int], reach: int) -> Iterator[list[_Token]]:
    """Split tokens into pieces of at most `room`; no tokens give one empty piece."""
    while len(tokens) > room:
        cut = room
        if comma and tokens[room].number != comma[0]:
            near = range(room - 1, max(room - reach, 0) - 1, -1)
            cut = next((i + 1 for i in near if tokens[i].number == comma[0]), room)
        yield tokens[:cut]
        tokens = tokens[cut:]
    yield tokens


def _chunk(tokens: list[_Token], vocabulary: Vocabulary) -> Chunk:
    padding = vocabulary.room - len(tokens)
    return Chunk(
        [vocabulary.start, *(t.number for t in tokens), vocabulary.end, *[vocabulary.pad] * padding],
        [1.0, *(t.weight for t in tokens), 1.0, *[1.0] * padding],
        [SPECIAL, *(t.owner for t in tokens), SPECIAL, *[SPECIAL] * padding],
    )
