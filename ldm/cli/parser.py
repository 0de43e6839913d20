"""The parser of all command lines."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ldm import wording
from ldm.cli.other_flags import translate, unknown
from ldm.errors import InputError

REFERENCE_FLAGS = frozenset(
    "--help --prompt --outdir --steps --ddim_steps --plms --dpm --fixed_code --ddim_eta --n_iter --H --W --C"
    " --f --n_samples --n_rows --scale --from-file --config --ckpt --seed --precision --repeat --device"
    " --torchscript --ipex --bf16 --init-img --strength".split()
)


LONG_FLAG = re.compile(r"--[A-Za-z][\w-]*(=.*)?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser that reports errors as InputError, in one line, and knows the flags of other tools."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if wording.by_command:
            kwargs.setdefault("prog", f"sd-{Path(sys.argv[0]).stem}")
            text = kwargs.get("description") or ""
            kwargs["description"] = re.sub(r"(python )?scripts/(\w+)\.py", r"sd-\2", text)
        super().__init__(*args, **kwargs)
        self.aliases: set[str] = set()      # reference flags of other scripts that are also accepted here

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Parse words, of which flags may have any spelling (`ldm.cli.other_flags`)."""
        words = sys.argv[1:] if args is None else list(args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args(
            [each for word in words[:end] for each in self._spelled(word)] + words[end:], namespace
        )

    def _spelled(self, word: str) -> list[str]:
        if not LONG_FLAG.fullmatch(word):
            return [word]
        return translate(word, self._option_string_actions, self._flag_of, self.prog)

    def _flag_of(self, option: str) -> str | None:
        found = [each.option_strings for each in self._actions if each.dest == option and each.option_strings]
        return found[0][0] if found else None

    def _parse_optional(self, arg_string: str) -> Any:
        """Take a word with a single dash that is no flag as a value, as in --prompt -cat."""
        single = arg_string[:1] == "-" and arg_string[:2] not in ("--", *self._option_string_actions)
        return None if single else super()._parse_optional(arg_string)

    def _get_option_tuples(self, option_string: str) -> list[tuple]:
        """Keep the meaning of abbreviations of reference flags, even if other flags make them ambiguous."""
        matches = super()._get_option_tuples(option_string)
        reference = [match for match in matches if match[1] in REFERENCE_FLAGS - self.aliases]
        return reference if len(reference) == 1 else matches

    def error(self, message: str) -> NoReturn:
        if found := re.match(r"unrecognized arguments: (-[A-Za-z][\w-]*)(\s|$)", message):
            raise unknown(found[1], self._option_string_actions, self.prog)
        raise InputError(f"{message}; see --help")


def path(word: str) -> Path:
    """Return a path with ~ expanded, which shells do not do in --flag=~/file."""
    return Path(word).expanduser()


def argument_type(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return an argparse type that reads a word with `read` and keeps the text of its InputError."""

    def convert(word: str) -> Any:
        try:
            return read(word)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def add_messages(parser: argparse.ArgumentParser) -> None:
    """Add --quiet and --debug."""
    group = parser.add_argument_group("messages")
    group.add_argument("--quiet", action="store_true", help="print only warnings and errors")
    group.add_argument("--debug", action="store_true", help="print details and tracebacks")
