r"""The attention syntax of AUTOMATIC1111's web interface, as its wiki describes it ("Attention/emphasis").

    (x)          1.1 times              [x]          1 / 1.1 times
    (x:1.5)      1.5 times              ((x)) [(x)]  nested: the factors multiply
    \( \) \[ \]  the sign itself        \\           a backslash; one before anything else is dropped
    BREAK        fills the chunk, and a new one begins

Nothing is an error. A bracket that is never closed acts up to the end; one that was never opened is text, and
so is a number that belongs to no bracket, as in "at 5:30)". Round and square brackets are counted apart, so
"([x)]" is as good as "[(x)]". Prompt editing ([a:b:0.5], [a|b]) and AND are not part of this syntax here:
they are read as attention and text.
"""

import re
from dataclasses import dataclass

from ldm.prompts.fragments import Fragment, Part, Prompt, merged

STEP = 1.1

SIGNS = re.compile(
    r"""
      \\ (?P<escaped> [\\()\[\]] )?
    | (?P<open> [(\[] )
    | : \s* (?P<factor> [+-]? (?: \d+ \.? \d* | \. \d+ ) ) \s* \)
    | (?P<close> [)\]] )
    """,
    re.VERBOSE,
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")
PARTNER = {")": "(", "]": "["}


@dataclass
class _Piece:
    text: str
    weight: float = 1.0
    ends_part: bool = False     # stands for a BREAK


def parse(text: str) -> Prompt:
    """Read a prompt; any text is one."""
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}       # where in `pieces` each open bracket stands

    def multiply(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece.weight *= factor

    position = 0
    for sign in SIGNS.finditer(text):
        pieces += _literal(text[position : sign.start()])
        position = sign.end()
        if sign["open"]:
            opened[sign["open"]].append(len(pieces))
        elif sign["factor"] and opened["("]:
            multiply(opened["("].pop(), float(sign["factor"]))
        elif sign["close"] and opened[PARTNER[sign["close"]]]:
            multiply(opened[PARTNER[sign["close"]]].pop(), STEP if sign["close"] == ")" else 1 / STEP)
        elif sign["factor"] or sign["close"]:
            pieces.append(_Piece(sign[0]))
        else:
            pieces.append(_Piece(sign["escaped"] or ""))
    pieces += _literal(text[position:])
    for start in opened["("]:
        multiply(start, STEP)
    for start in opened["["]:
        multiply(start, 1 / STEP)
    return Prompt((_parts(pieces),))


def escape(text: str) -> str:
    """Return what is read as `text` itself, with weight 1. There is no way to write the word BREAK."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", text)


def _literal(text: str) -> list[_Piece]:
    """Cut a text without signs at its breaks."""
    first, *rest = BREAK.split(text)
    pieces = [_Piece(first)]
    for piece in rest:
        pieces += [_Piece("", ends_part=True), _Piece(piece)]
    return pieces


def _parts(pieces: list[_Piece]) -> tuple[Part, ...]:
    """Return the fragments of every part; nothing after the last break is no part."""
    parts: list[list[Fragment]] = [[]]
    for piece in pieces:
        if piece.ends_part:
            parts.append([])
        else:
            parts[-1].append(Fragment(piece.text, piece.weight))
    joined = [merged(part) for part in parts]
    return tuple(joined if joined[-1] or len(joined) == 1 else joined[:-1])
