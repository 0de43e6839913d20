"""The command line of a request: flags from its options, and a request from the flags."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ldm.cli import reference_flags
from ldm.errors import InputError
from ldm.requests import Field, Request, fields_of

REFERENCE_FLAGS = frozenset(
    "--help --prompt --outdir --steps --ddim_steps --plms --dpm --fixed_code --ddim_eta --n_iter --H --W --C"
    " --f --n_samples --n_rows --scale --from-file --config --ckpt --seed --precision --repeat --device"
    " --torchscript --ipex --bf16 --init-img --strength".split()
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line like all others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self.aliases: set[str] = set()      # reference flags of other scripts, taken here too

    def _get_option_tuples(self, option_string: str) -> list[tuple]:
        """Let an abbreviation of a reference flag keep its meaning, whatever flags have been added."""
        matches = super()._get_option_tuples(option_string)
        reference = [match for match in matches if match[1] in REFERENCE_FLAGS - self.aliases]
        return reference if len(reference) == 1 else matches

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parser_of(cls: type[Request], description: str) -> Parser:
    """Return the parser of a request class. Only the flags that are given are in what it returns."""
    parser = Parser(description=description, argument_default=argparse.SUPPRESS)
    sections: dict[str, Any] = {}
    for each in fields_of(cls).values():
        title, note = each.section
        if title not in sections:
            sections[title] = parser.add_argument_group(title, note or None)
        if each.option.flags:
            _add(parser, sections[title], each)
    reference_flags.add(parser, sections, fields_of(cls)["eta"].option.usual)
    return parser


def parse(cls: type[Request], parser: Parser, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the options that a command line gives, by the names of the fields.

    Raises: InputError for a flag that does not exist, or a value out of bounds, or flags that contradict.
    """
    return reference_flags.folded(cls, vars(parser.parse_args(argv)))


def _add(parser: Parser, section: Any, each: Field) -> None:
    about = each.option
    keywords: dict[str, Any] = {"dest": each.name, "help": _help(each)}
    if each.kind is bool:
        section.add_argument(*about.flags, action="store_true", **keywords)
        return
    if about.words:
        keywords |= {"nargs": "+", "action": _Words, "field": each}
    else:
        keywords["type"] = _read(each)
        if about.bare is not None:
            keywords |= {"nargs": "?", "const": about.bare}
    if each.choices:
        keywords["metavar"] = "{" + ",".join(each.choices) + "}"
    elif about.metavar:
        keywords["metavar"] = about.metavar
    section.add_argument(*about.flags, **keywords)
    parser.aliases |= set(about.flags[1:])


def _read(each: Field) -> Any:
    """Return what argparse converts a word with; its errors keep their text."""

    def read(word: str) -> Any:
        try:
            return each.read(word)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


class _Words(argparse.Action):
    """Reads several words as one value."""

    def __init__(self, *args: Any, field: Field, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.field = field

    def __call__(self, _: Any, args: argparse.Namespace, words: list[str], *__: Any) -> None:
        try:
            setattr(args, self.dest, self.field.read(words))
        except InputError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def _help(each: Field) -> str:
    """Return the help of an option with its default."""
    about = each.option
    usual = about.usual if each.default is None else each.default
    words = str(usual) if about.default is None else about.default.format(usual)
    if usual in (False, (), "") and about.default is None:
        words = ""
    elif usual is None and about.default is None:
        words = "none"
    return (about.help + (f" (default: {words})" if words else "")).replace("%", "%%")
