r"""The syntax of the compel library (its doc/syntax.md).

    word+  word--            a factor of 1.1 for each +, of 0.9 for each -
    (a phrase)+  (a)1.3      the same for a phrase, or an explicit weight; also "a phrase"+
    (a (b)1.3)1.1            nested: the weights multiply
    \( \) \" \\              the literal character
    ("a", "b").and()         concatenates the contexts; .and(1, 0.5) weights them
    ("a", "b").blend(1, 2)   averages the contexts with weights; with no_normalize last: their weighted sum

+ and - count only at the end of a word, and a bracket only at its beginning: "a+b", "1 + 1" and "f(x)" are
text. Unlike in compel, which reads an unbalanced bracket as text, it is an error that reports its position.
`.swap()` changes the attention during sampling and is not supported.
"""

import math
import re
from dataclasses import dataclass

from ldm.prompts.fragments import Fragment, Part, Prompt, fault, merged

UP, DOWN = 1.1, 0.9

ESCAPE = r'\\[()"\\]'
LETTER = rf'(?: {ESCAPE} | \\ (?! [()"\\] ) | [^\s,()"\\] )'
WORD = re.compile(
    rf"""
    (?P<word> {LETTER} (?: {LETTER} | \( [^\s()]* \) )*? )
    (?: (?P<signs> \++ | -+ ) (?= [\s,.()"] | $ ) | (?= [\s,)"] | $ ) )
    """,
    re.VERBOSE,
)
QUOTED = re.compile(r'"((?:\\.|[^"\\])*)"', re.DOTALL)       # not after a letter or digit: 5" is inches
FACTOR = re.compile(r"\++|-+|\d*\.?\d+|")
JOINED = re.compile(
    rf"""
    \s* \( \s* (?P<clauses> {QUOTED.pattern} (?: \s*,\s* {QUOTED.pattern} )* ) \s* \)
    \s* \. (?P<how> and | blend ) \( (?P<with> [^()]* ) \) \s*
    """,
    re.VERBOSE | re.DOTALL,
)
METHOD = re.compile(r"(?<=[)\w\"])\.(and|blend|swap)\(")


@dataclass
class _Piece:
    text: str
    weight: float


def parse(text: str) -> Prompt:
    """Parse a prompt.

    Raises: InputError with the position of the first error.
    """
    joined = JOINED.fullmatch(text)
    if joined is None:
        return Prompt(((_part(text, text, 0),),))
    start = joined.start("clauses")
    quoted = list(QUOTED.finditer(text, start, joined.end("clauses")))
    clauses = tuple((_part(text, clause[1], clause.start(1)),) for clause in quoted)
    blend = joined["how"] == "blend"
    weights = _weights(text, joined, len(clauses), normalised=blend)
    return Prompt(clauses, weights, blend)


def _weights(text: str, joined: re.Match[str], count: int, normalised: bool) -> tuple[float, ...]:
    """Return the arguments of `.and(...)` or `.blend(...)`, one weight per clause; by default 1."""
    words = [word.strip() for word in joined["with"].split(",") if word.strip()]
    if normalised and "no_normalize" in words:
        normalised = False
        words.remove("no_normalize")
    try:
        weights = [float(word) for word in words] or [1.0] * count
    except ValueError:
        weights = []
    if len(weights) != count or not all(map(math.isfinite, weights)):
        got = f"got {joined['with'].strip()!r}, expected {count} numbers, one for each text"
        raise fault(text, joined.start("with"), f".{joined['how']}(): {got}")
    if not normalised:
        return tuple(weights)
    if (total := sum(weights)) == 0:
        problem = ".blend(): the weights add up to 0; add no_normalize, or change one"
        raise fault(text, joined.start("with"), problem)
    return tuple(weight / total for weight in weights)


def _part(whole: str, text: str, offset: int) -> Part:
    """Parse one text without methods, which starts at `offset` of the whole prompt."""
    if method := METHOD.search(text):
        raise fault(whole, offset + method.start(), _about(method[1]))
    pieces: list[_Piece] = []
    opened: list[tuple[int, int]] = []  # (position, number of pieces before) of the open brackets

    def space(spaces: str) -> None:
        if pieces:
            pieces[-1].text += spaces

    position = 0
    while position < len(text):
        sign, start = text[position], position
        if sign == "(":
            space(" ")
            opened.append((position, len(pieces)))
            position += 1
        elif sign == ")":
            if not opened:
                problem = r"')' has no opening bracket; add one, or write \) for the character itself"
                raise fault(whole, offset + position, problem)
            factor, position = _factor(text, position + 1)
            for piece in pieces[opened.pop()[1] :]:
                piece.weight *= factor
            space(" ")
        elif sign.isspace():
            space(sign)
            position += 1
        elif not (position and text[position - 1].isalnum()) and (quoted := QUOTED.match(text, position)):
            factor, position = _factor(text, quoted.end())
            space(" ")
            pieces.append(_Piece(f"{_unescaped(quoted[1])} ", factor))
        elif word := WORD.match(text, position):
            position = word.end()
            pieces.append(_weighted(word))
        else:  # a comma, a single quotation mark, or a letter before a bracket that contains spaces
            position += 1
            pieces.append(_Piece(text[start:position], 1.0))
    if opened:
        problem = r"'(' is never closed; close it, or write \( for the character itself"
        raise fault(whole, offset + opened[-1][0], problem)
    return merged(Fragment(piece.text, piece.weight) for piece in pieces)


def _weighted(word: re.Match[str]) -> _Piece:
    """Return a word with the weight of its signs; signs alone are a word."""
    if set(word["word"]) <= {"+", "-"}:
        return _Piece(word[0], 1.0)
    return _Piece(_unescaped(word["word"]), _power(word["signs"] or ""))


def _factor(text: str, position: int) -> tuple[float, int]:
    """Return the weight written at `position`, or 1, and the position after it."""
    match = FACTOR.match(text, position)
    word = match[0]
    return (_power(word) if word[:1] in ("", "+", "-") else float(word)), match.end()


def _power(signs: str) -> float:
    return (UP if signs.startswith("+") else DOWN) ** len(signs)


def _unescaped(text: str) -> str:
    return re.sub(ESCAPE, lambda match: match[0][1:], text)


def _about(method: str) -> str:
    if method == "swap":
        return ".swap() is not supported because it changes the attention; use weights, .and() or .blend()"
    return f'.{method}() joins whole prompts; expected only ("one text", "another").{method}()'
