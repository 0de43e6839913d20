"""What every syntax is read into.

    Prompt      clauses joined by "and" (put one after another) or "blend" (added up), each with a weight
    clause      parts, where a break begins a new part and with it a new chunk
    part        fragments
    Fragment    a text and the weight of its tokens
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ldm.errors import InputError

SHOWN = 40


@dataclass(frozen=True)
class Fragment:
    """A text whose tokens all have one weight."""

    text: str
    weight: float = 1.0


Part = tuple[Fragment, ...]
Clause = tuple[Part, ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt that has been read.

    Args:
        clauses: at least one, and only that one but in compel's `.and()` and `.blend()`.
        weights: one a clause.
        blend: the clauses' contexts are added up, times their weights; else they follow each other.
    """

    clauses: tuple[Clause, ...]
    weights: tuple[float, ...] = (1.0,)
    blend: bool = False

    def fragments(self) -> list[Fragment]:
        """Return all fragments in order."""
        return [fragment for clause in self.clauses for part in clause for fragment in part]


def merged(fragments: Iterable[Fragment], between: str = "") -> Part:
    """Join neighbours of equal weight, `between` put between their texts; leave out what has no text."""
    part: list[Fragment] = []
    for fragment in fragments:
        if not fragment.text:
            continue
        if part and part[-1].weight == fragment.weight:
            fragment = Fragment(part.pop().text + between + fragment.text, fragment.weight)
        part.append(fragment)
    return tuple(part)


def preview(text: str) -> str:
    """Return the text in quotes, shortened, on one line."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def fault(text: str, position: int, problem: str) -> InputError:
    """Return the error for what is wrong at text[position:]; people count from 1."""
    return InputError(f"prompt {preview(text)}, character {position + 1}: {problem}")
