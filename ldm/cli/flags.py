"""The command line of a request: the flags that its options define."""

import argparse
from typing import Any

from ldm.cli import reference_flags
from ldm.cli.parser import Parser, argument_type
from ldm.errors import InputError
from ldm.requests import Field, Request, fields_of


def parser_of(cls: type[Request], description: str) -> Parser:
    """Return the parser of a request class. Its namespace contains only the flags that were given."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    sections = add_options(parser, cls)
    reference_flags.add(parser, sections, fields_of(cls)["eta"].option.usual)
    return parser


def add_options(parser: Parser, cls: type) -> dict[str, Any]:
    """Add the flags of a class with options to its parser, and return the argument groups by title."""
    sections: dict[str, Any] = {}
    for each in fields_of(cls).values():
        title, note = each.section
        if title not in sections:
            sections[title] = parser.add_argument_group(title, note or None)
        if each.option.flags:
            _add(parser, sections[title], each)
    return sections


def _add(parser: Parser, section: Any, each: Field) -> None:
    about = each.option
    keywords: dict[str, Any] = {"dest": each.name, "help": _help(each)}
    if each.kind is bool:
        section.add_argument(*about.flags, action="store_true", **keywords)
        return
    if about.words:
        keywords |= {"nargs": "+", "action": _Words, "field": each}
    else:
        keywords["type"] = argument_type(each.read)
        if about.bare is not None:
            keywords |= {"nargs": "?", "const": about.bare}
    if each.choices:
        keywords["metavar"] = "{" + ",".join(each.choices) + "}"
    elif about.metavar:
        keywords["metavar"] = about.metavar
    section.add_argument(*about.flags, **keywords)
    parser.aliases |= set(about.flags[1:])


class _Words(argparse.Action):
    """Reads several words as one value."""

    def __init__(self, *args: Any, field: Field, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.field = field

    def __call__(self, _: Any, args: argparse.Namespace, words: list[str], *__: Any) -> None:
        before = getattr(args, self.dest, ()) if self.field.option.is_repeatable else ()
        try:
            setattr(args, self.dest, self.field.read([*before, *words]))
        except InputError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _help(each: Field) -> str:
    """Return the help text of an option with its default."""
    about = each.option
    usual = about.usual if each.default is None else each.default
    words = str(usual) if about.default is None else about.default.format(usual)
    if usual in (False, (), "") and about.default is None:
        words = ""
    elif usual is None and about.default is None:
        words = "none"
    return (about.help + (f" (default: {words})" if words else "")).replace("%", "%%")
