"""The parser of every command line."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from ldm.errors import InputError

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


def argument_type(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return an argparse type that reads a word with `read`, whose InputError keeps its text."""

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
