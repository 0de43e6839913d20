r"""Expand one template to many prompts.

    {red|green} apple        red apple, green apple; an alternative may be empty or contain others
    __colour__ apple         every line of DIR/colour.txt; __food/fruit__ uses DIR/food/fruit.txt
    \{ \} \| \_              the literal character

In a wildcard file, empty lines and lines that start with # are skipped; a line may contain alternatives and
wildcards. "all" gives every combination, with the rightmost place changing fastest; "random" draws each place
independently and uniformly, so that a prompt may occur twice.

The usual library, dynamicprompts, had its last release in March 2024: it fails on a "$" or a single brace in
a prompt, and warns with current versions of its parser. The common syntax is read alike; dynamicprompts'
{2$$a|b} (several at once) and {0.5::a|b} (weights) are rejected here.
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
from ldm.prompts.files import lines_of
from ldm.prompts.fragments import fault

MAX_PROMPTS = 100_000
MAX_DEPTH = 50

SIGNS = re.compile(
    r"\\(?P<escaped>[{}|_])|(?P<sign>[{}|])"
    r"|__(?P<name>[^\s_{}|](?:(?:(?!__)[^{}|\n])*?[^\s_{}|])?)__"
    r"|(?<!\w)__(?P<padded>[^\S\n]+[^\s_{}|](?:(?!__)[^{}|\n])*|[^\s_{}|]+[^\S\n]+)__(?!\w)"
    r"|(?<!\w)__(?P<open>[^\W_][\w.-]*)"
)
FOREIGN = re.compile(r"\s*(\d+(-\d+)?\$\$|\d*\.?\d+::)")


@dataclass(frozen=True)
class Choice:
    """A place of a template that takes one of several alternatives."""

    options: tuple["Template", ...]

    @cached_property
    def count(self) -> int:
        """The number of texts that the place can take."""
        return sum(_count(option) for option in self.options)


Template: TypeAlias = tuple[str | Choice, ...]


class Combinations:
    """Expands templates, with wildcards from a folder."""

    def __init__(self, wildcards: str | Path | None = None) -> None:
        """Take the folder of the wildcard files. Raises: InputError if it does not exist."""
        self.folder = None if wildcards is None else Path(wildcards)
        self._read: dict[str, Choice] = {}
        self._reading: list[str] = []
        if self.folder is not None and not self.folder.is_dir():
            raise InputError(f"wildcards: there is no folder {self.folder}")

    def all(self, text: str) -> list[str]:
        """Return all prompts of a template.

        Raises: InputError for unbalanced braces, an unknown wildcard, or more than MAX_PROMPTS prompts.
        """
        template = self.parse(text)
        if (count := _count(template)) > MAX_PROMPTS:
            problem = f"expands to {count:,} prompts; expected at most {MAX_PROMPTS:,}: draw some at random"
            raise fault(text, 0, problem)
        return _all(template)

    def random(self, text: str, count: int, seed: int) -> list[str]:
        """Draw `count` prompts; a seed gives the same prompts on every machine."""
        template, numbers = self.parse(text), random.Random(seed)
        return [_drawn(template, numbers) for _ in range(count)]

    def parse(self, text: str) -> Template:
        """Parse a template.

        Raises: InputError with the position of the first error.
        """
        levels: list[list[list[str | Choice]]] = [[[]]]     # for each open brace, its alternatives so far
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
            elif match["padded"]:
                name = match["padded"].strip()
                problem = rf"wildcard {match[0]}: write __{name}__, without blanks, or \__ for the text"
                raise fault(text, match.start(), problem)
            elif match["open"]:
                problem = rf"wildcard __{match['open']} is never closed; write __name__, or \__ for the text"
                raise fault(text, match.start(), problem)
            elif sign == "{":
                if foreign := FOREIGN.match(text, position):
                    problem = f"{foreign[1]!r} is not supported in braces; write the alternatives out"
                    raise fault(text, position, problem)
                if len(opened) == MAX_DEPTH:
                    raise fault(text, match.start(), f"braces are nested deeper than {MAX_DEPTH}")
                opened.append(match.start())
                levels.append([[]])
            elif sign == "|" and opened:
                levels[-1].append([])
            elif sign == "}" and opened:
                opened.pop()
                options = levels.pop()
                levels[-1][-1].append(Choice(tuple(tuple(option) for option in options)))
            elif sign == "}":
                problem = r"'}' has no opening brace; add one, or write \} for the character itself"
                raise fault(text, match.start(), problem)
            else:
                place.append(sign)
        if opened:
            problem = r"'{' is never closed; close it, or write \{ for the character itself"
            raise fault(text, opened[-1], problem)
        return (*levels[0][0], text[position:])

    def _wildcard(self, text: str, match: re.Match[str]) -> Choice:
        """Return the choice between the lines of a wildcard file."""
        name = match["name"]
        if name in self._reading:
            circle = " -> ".join([*self._reading, name])
            raise fault(text, match.start(), f"wildcard files refer to each other in a circle: {circle}")
        if name not in self._read:
            if len(self._reading) == MAX_DEPTH:
                raise fault(text, match.start(), f"wildcard files are nested deeper than {MAX_DEPTH}")
            self._reading.append(name)
            try:
                self._read[name] = Choice(tuple(self.parse(line) for line in self._lines(text, match)))
            finally:
                self._reading.pop()
        return self._read[name]

    def _lines(self, text: str, match: re.Match[str]) -> list[str]:
        name = match["name"]
        if self.folder is None:
            problem = f"wildcard {match[0]}: give the folder of the wildcard files with --wildcards DIR"
            raise fault(text, match.start(), problem)
        path = self.folder / f"{name}.txt"
        if name.startswith("/") or ".." in Path(name).parts:
            problem = f"wildcard {match[0]}: its file must be in --wildcards {self.folder}"
            raise fault(text, match.start(), problem)
        try:
            lines = [line.decode() for line in lines_of(path.read_bytes())]
        except (OSError, UnicodeDecodeError) as error:
            known = [str(file.relative_to(self.folder))[:-4] for file in sorted(self.folder.rglob("*.txt"))]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean __{near[0]}__?" if near and not path.exists() else ""
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise fault(text, match.start(), f"wildcard {match[0]}: {path}: {reason}{hint}") from error
        values = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not values:
            raise fault(text, match.start(), f"wildcard {match[0]}: {path} contains no values")
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
    """Draw one prompt. Python guarantees only for `random()` that a seed's numbers stay the same."""
    words = []
    for place in template:
        if isinstance(place, Choice):
            option = place.options[int(numbers.random() * len(place.options))]
            words.append(_drawn(option, numbers))
        else:
            words.append(place)
    return "".join(words)
