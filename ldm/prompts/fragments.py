"""The data structure that every prompt syntax is parsed into.

    Prompt      clauses joined by "and" (contexts concatenated) or "blend" (contexts summed), with weights
    clause      parts; a break starts a new part, and with it a new chunk
    part        fragments
    Fragment    a text and the weight of its tokens
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ldm.errors import InputError

SHOWN = 40


@dataclass(frozen=True)
class Fragment:
    """A text whose tokens all have the same weight."""

    text: str
    weight: float = 1.0


Part = tuple[Fragment, ...]
Clause = tuple[Part, ...]


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt.

    Args:
        clauses: one, or several with compel's `.and()` and `.blend()`.
        weights: one per clause.
        blend: sum the clauses' contexts, multiplied by their weights, instead of concatenating them.
    """

    clauses: tuple[Clause, ...]
    weights: tuple[float, ...] = (1.0,)
    blend: bool = False

    def fragments(self) -> list[Fragment]:
        """Return all fragments in order."""
        return [fragment for clause in self.clauses for part in clause for fragment in part]


def merged(fragments: Iterable[Fragment], between: str = "") -> Part:
    """Join neighbours of equal weight with `between`, and drop empty fragments."""
    part: list[Fragment] = []
    for fragment in fragments:
        if not fragment.text:
            continue
        if part and part[-1].weight == fragment.weight:
            fragment = Fragment(part.pop().text + between + fragment.text, fragment.weight)
        part.append(fragment)
    return tuple(part)


def preview(text: str) -> str:
    """Return the text quoted and shortened to one line."""
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")


def fault(text: str, position: int, problem: str) -> InputError:
    """Return the error for a problem at text[position]; the message counts characters from 1."""
    return InputError(f"prompt {preview(text)}, character {position + 1}: {problem}")
