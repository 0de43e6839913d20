r"""One template -> many prompts.

    {red|green} apple        red apple, green apple; an alternative may be empty, and hold others in turn
    __colour__ apple         every line of DIR/colour.txt; __food/fruit__ those of DIR/food/fruit.txt
    \{ \} \|                 the sign itself

In a wildcard file, empty lines and those that begin with # are skipped; a line may hold alternatives and
wildcards. "all" makes every combination, the rightmost place changing fastest; "random" draws each place by
itself, all alternatives alike, so that a prompt may come twice.

The usual library, dynamicprompts, made its last release in March 2024: it fails on a "$" or a single brace in
a prompt, and warns with the parser library of today. What the two have in common is read alike; its
{2$$a|b} (several at once) and {0.5::a|b} (odds) are refused here.
"""

import difflib
import random
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import TypeAlias

from ldm.errors import InputError
from ldm.prompts.fragments import fault

MAX_PROMPTS = 100_000
MAX_DEPTH = 50

SIGNS = re.compile(r"\\(?P<escaped>[{}|])|(?P<sign>[{}|])|__(?P<name>\w(?:[\w/-]*?\w)?)__")
FOREIGN = re.compile(r"\s*(\d+(-\d+)?\$\$|\d*\.?\d+::)")


@dataclass(frozen=True)
class Choice:
    """A place where one of several is put."""

    options: tuple["Template", ...]

    @cached_property
    def count(self) -> int:
        """Return how many texts can be put there."""
        return sum(_count(option) for option in self.options)


Template: TypeAlias = tuple[str | Choice, ...]


class Combinations:
    """Expands templates, with wildcards from a folder."""

    def __init__(self, wildcards: str | Path | None = None) -> None:
        """Raises: InputError when there is no such folder."""
        self.folder = None if wildcards is None else Path(wildcards)
        self._read: dict[str, Choice] = {}
        self._reading: list[str] = []
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"wildcards: there is no folder {self.folder}")

    def all(self, text: str) -> list[str]:
        """Return every prompt that a template stands for.

        Raises: InputError for wrong braces, an unknown wildcard, or more than MAX_PROMPTS.
        """
        template = self.parse(text)
        if (count := _count(template)) > MAX_PROMPTS:
            problem = f"stands for {count:,} prompts; expected at most {MAX_PROMPTS:,}: draw some at random"
            raise fault(text, 0, problem)
        return _all(template)

    def random(self, text: str, count: int, seed: int) -> list[str]:
        """Draw `count` prompts; the same seed gives the same ones on every machine."""
        template, numbers = self.parse(text), random.Random(seed)
        return [_drawn(template, numbers) for _ in range(count)]

    def parse(self, text: str) -> Template:
        """Read a template.

        Raises: InputError naming the character that is wrong.
        """
        levels: list[list[list[str | Choice]]] = [[[]]]     # of each open brace the alternatives so far
        opened: list[int] = []
        position = 0
        for match in SIGNS.finditer(text):
            place, sign = levels[-1][-1], match["sign"]
            place.append(text[position : match.start()])
            position = match.end()
            if match["escaped"]:
                place.append(match["escaped"])
            elif match["name"]:
                place.append(self._wildcard(text, match))
            elif sign == "{":
                if foreign := FOREIGN.match(text, position):
                    problem = f"{foreign[1]!r} is not supported in braces; write the alternatives out"
                    raise fault(text, position, problem)
                if len(opened) == MAX_DEPTH:
                    raise fault(text, match.start(), f"braces in braces, deeper than {MAX_DEPTH}")
                opened.append(match.start())
                levels.append([[]])
            elif sign == "|" and opened:
                levels[-1].append([])
            elif sign == "}" and opened:
                opened.pop()
                options = levels.pop()
                levels[-1][-1].append(Choice(tuple(tuple(option) for option in options)))
            elif sign == "}":
                problem = r"'}' closes nothing; open it, or write \} for the sign itself"
                raise fault(text, match.start(), problem)
            else:
                place.append(sign)
        if opened:
            raise fault(text, opened[-1], r"'{' is never closed; close it, or write \{ for the sign itself")
        return (*levels[0][0], text[position:])

    def _wildcard(self, text: str, match: re.Match[str]) -> Choice:
        """Return the choice that the lines of a wildcard's file are."""
        name = match["name"]
        if name in self._reading:
            circle = " -> ".join([*self._reading, name])
            raise fault(text, match.start(), f"wildcard files name each other in a circle: {circle}")
        if name not in self._read:
            if len(self._reading) == MAX_DEPTH:
                raise fault(text, match.start(), f"wildcard files in wildcard files, deeper than {MAX_DEPTH}")
            self._reading.append(name)
            self._read[name] = Choice(tuple(self.parse(line) for line in self._lines(text, match)))
            self._reading.pop()
        return self._read[name]

    def _lines(self, text: str, match: re.Match[str]) -> list[str]:
        name = match["name"]
        if self.folder is None:
            problem = f"wildcard {match[0]}: give the folder of its file, --wildcards DIR"
            raise fault(text, match.start(), problem)
        path = self.folder / f"{name}.txt"
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            known = [str(file.relative_to(self.folder))[:-4] for file in sorted(self.folder.rglob("*.txt"))]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean __{near[0]}__?" if near and not path.exists() else ""
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise fault(text, match.start(), f"wildcard {match[0]}: {path}: {reason}{hint}") from error
        values = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not values:
            raise fault(text, match.start(), f"wildcard {match[0]}: {path} holds no values")
        return values


def _count(template: Template) -> int:
    return prod(place.count for place in template if isinstance(place, Choice))


def _all(template: Template) -> list[str]:
    places = [
        [text for option in place.options for text in _all(option)] if isinstance(place, Choice) else [place]
        for place in template
    ]
    return ["".join(words) for words in product(*places)]


def _drawn(template: Template, numbers: random.Random) -> str:
    """Draw one prompt; `random()` is what Python promises to keep the same from version to version."""
    words = []
    for place in template:
        if isinstance(place, Choice):
            option = place.options[int(numbers.random() * len(place.options))]
            words.append(_drawn(option, numbers))
        else:
            words.append(place)
    return "".join(words)
