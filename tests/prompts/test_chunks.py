"""Tokens in chunks, against a reading token by token."""

from hypothesis import given
from hypothesis import strategies as st

from ldm.prompts.chunks import Vocabulary, chunks, count
from ldm.prompts.fragments import Fragment

START, END, PAD, COMMA = 101, 102, 0, 7
LENGTH = 26


def encode(text: str) -> list[int]:
    return [COMMA if sign == "," else ord(sign) for sign in text if sign != " "]


VOCABULARY = Vocabulary(encode, START, END, PAD, LENGTH)


def texts(clause, reach=0) -> list[list[int]]:
    """Return the tokens of every chunk without start, end and padding."""
    return [chunk.tokens[1 : chunk.tokens.index(END)] for chunk in chunks(clause, VOCABULARY, reach)]


def test_a_chunk_is_start_text_end_padding():
    (chunk,) = chunks(((Fragment("ab", 1.5), Fragment("c", 0.5)),), VOCABULARY)
    assert chunk.tokens == [START, *encode("abc"), END, *[PAD] * 21]
    assert chunk.weights == [1, 1.5, 1.5, 0.5, 1, *[1] * 21]
    assert chunk.owners == [-1, 0, 0, 1, -1, *[-1] * 21]


def test_no_text_is_one_empty_chunk():
    assert texts(((),)) == [[]]
    assert texts(((Fragment(" "),),)) == [[]]


def test_every_part_begins_a_chunk_and_fragments_are_counted_through():
    clause = (Fragment("a"), Fragment("b", 2)), (), (Fragment("c", 3),)
    assert texts(clause) == [encode("ab"), [], encode("c")]
    assert [max(chunk.owners) for chunk in chunks(clause, VOCABULARY)] == [1, -1, 2]
    assert count(clause, VOCABULARY) == 3


def test_full_chunks_end_behind_a_near_comma():
    near, far = "abcd," + "e" * 25, "abc," + "e" * 25
    assert texts(((Fragment(near),),), reach=20) == [encode("abcd,"), [101] * 24, [101]]
    assert texts(((Fragment(far),),), reach=20) == [encode("abc," + "e" * 20), [101] * 5]
    assert texts(((Fragment(near),),)) == [encode("abcd," + "e" * 19), [101] * 6]
    on_the_edge = "a," + "b" * 22 + ",c"
    assert texts(((Fragment(on_the_edge),),), reach=20) == [encode("a," + "b" * 22), encode(",c")]


def one_by_one(numbers: list[int], reach: int) -> list[list[int]]:
    """Fill chunks token by token, carrying what follows the last comma over to the next chunk."""
    room, done, current, comma = LENGTH - 2, [], [], None
    for number in numbers:
        if len(current) == room:
            carried = []
            if number != COMMA and comma is not None and room - comma <= reach:
                carried = current[comma + 1 :]
            done.append(current[: room - len(carried)])
            current, comma = carried, None
        if number == COMMA:
            comma = len(current)
        current.append(number)
    return [*done, current]


@given(st.text(alphabet="ab,", max_size=150), st.sampled_from([0, 5, 20]))
def test_any_text_is_cut_as_token_by_token(text, reach):
    assert texts(((Fragment(text),),), reach) == one_by_one(encode(text), reach)
    assert sum(texts(((Fragment(text),),), reach), []) == encode(text)
