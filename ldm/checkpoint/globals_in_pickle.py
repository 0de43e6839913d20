"""List what a pickle would import, by reading its opcodes; nothing is executed.

This serves messages and a first refusal. The gate proper is torch's restricted unpickler.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what unpicklers apply to old names
from contextlib import suppress
from struct import error as StructError
from typing import BinaryIO

MAX_OPCODES = 50_000


def find_names(file: BinaryIO, names: set[str]) -> None:
    """Add to `names` the dotted names of the pickle at the file's position, up to its end or its damage."""
    with suppress(ValueError, LookupError, TypeError, OverflowError, StructError):      # at the damage
        _read(file, names)


def _read(file: BinaryIO, names: set[str]) -> None:
    memo: dict[int, str] = {}
    strings: list[str] = []             # the latest texts pushed; STACK_GLOBAL takes its two from the stack
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_OPCODES:
            return
        if opcode.name in ("GLOBAL", "INST"):
            names.add(todays_name(*argument.split(" ", 1)))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]) or "an unknown name")
        elif opcode.name.startswith("EXT"):
            names.add("a copyreg extension")
        elif isinstance(argument, str) and "UNICODE" in opcode.name or opcode.name.endswith("STRING"):
            strings.append(str(argument))
        elif opcode.name == "MEMOIZE" and strings:
            memo[len(memo)] = strings[-1]
        elif opcode.name.endswith("PUT") and strings:
            memo[argument] = strings[-1]
        elif opcode.name.endswith("GET") and argument in memo:
            strings.append(memo[argument])
        del strings[:-2]


def todays_name(module: str, name: str) -> str:
    """Return the dotted name that a Python 2 name is read as."""
    if (module, name) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, name])
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"
