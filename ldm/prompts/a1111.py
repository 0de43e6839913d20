r"""The attention syntax of AUTOMATIC1111's web interface, as its wiki describes it ("Attention/emphasis").

    (x)          weight 1.1             [x]          weight 1 / 1.1
    (x:1.5)      weight 1.5             ((x)) [(x)]  nested: the weights multiply
    \( \) \[ \]  the literal character  \\           a backslash; before other characters it is dropped
    BREAK        fills the chunk and starts a new one

Any text is valid. A bracket that is never closed extends to the end; one that was never opened is text, and
so is a number outside of brackets, as in "at 5:30)". Round and square brackets are matched independently, so
"([x)]" means the same as "[(x)]". Prompt editing ([a:b:0.5], [a|b]) and AND are not supported: they are read
as attention and text.
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
    ends_part: bool = False     # a BREAK


def parse(text: str) -> Prompt:
    """Parse a prompt; any text is valid."""
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}       # index into `pieces` of each open bracket

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
    """Escape a text so that it is parsed as itself with weight 1. The word BREAK cannot be escaped."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", text)


def _literal(text: str) -> list[_Piece]:
    """Split a text without brackets at its breaks."""
    first, *rest = BREAK.split(text)
    pieces = [_Piece(first)]
    for piece in rest:
        pieces += [_Piece("", ends_part=True), _Piece(piece)]
    return pieces


def _parts(pieces: list[_Piece]) -> tuple[Part, ...]:
    """Return the fragments of every part; an empty part after the last break is dropped."""
    parts: list[list[Fragment]] = [[]]
    for piece in pieces:
        if piece.ends_part:
            parts.append([])
        else:
            parts[-1].append(Fragment(piece.text, piece.weight))
    joined = [merged(part) for part in parts]
    return tuple(joined if joined[-1] or len(joined) == 1 else joined[:-1])
