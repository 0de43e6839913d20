"""Readers of values that are more than a number or a word, from text or from typed values.

Each returns the value, or raises InputError with the given and the expected value.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from ldm.errors import InputError
from ldm.requests.fields import choice, integer

MAX_SEED = 2**32 - 1
DTYPES = ("auto", "float32", "float16", "bfloat16")
OTHER_DTYPES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


def seed(value: Any) -> int:
    """Return a seed."""
    try:
        return integer(0, MAX_SEED)(value)
    except InputError as error:
        if str(value).strip().isdecimal():
            same = int(value) % 2**32
            raise InputError(f"{error}; on a CPU, torch draws the same numbers for {same}") from None
        raise InputError(f"{error}; no value means random: choose any seed, such as 7") from None


def dtype(value: Any) -> str:
    """Return a dtype by its name here, or by that of torch or another tool."""
    name = str(value).removeprefix("torch.")
    return choice(OTHER_DTYPES.get(name, name), DTYPES)


def combinations(value: Any) -> str | tuple[str, int]:
    """Return "all", or ("random", N)."""
    from ldm.prompts.combinations import MAX_PROMPTS

    words = [value] if isinstance(value, str) else list(value)
    if len(words) == 1:
        words = str(words[0]).split()
    if words == ["all"]:
        return "all"
    if words[:1] == ["random"] and len(words) == 2:
        return "random", integer(1, MAX_PROMPTS)(words[1])
    raise InputError(f"got {' '.join(map(str, words))!r}, expected all, or random N")


def interval(value: Any) -> tuple[float, float]:
    """Return LOW,HIGH as two numbers."""
    try:
        low, high = map(float, value.split(",") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 <= low < high <= 1:
        raise InputError(f"got {value!r}, expected LOW,HIGH with 0 <= LOW < HIGH <= 1")
    return low, high


def percentile(value: Any) -> float:
    """Return a percentile as a fraction of 1."""
    found = _float(value)
    if not 0 < found <= 1:
        raise InputError(f"got {value!r}, expected a number above 0 and at most 1, such as 0.995")
    return found


def enlargement(value: Any) -> float:
    """Return a factor above 1 and at most 4."""
    found = _float(value)
    if not 1 < found <= 4:
        raise InputError(f"got {value!r}, expected a number above 1 and at most 4, such as 1.5")
    return found


def size_in_bytes(value: Any) -> int | None:
    """Return 8GB, 6.5GiB or 900M as bytes, and auto as None; a number is in bytes."""
    if value == "auto":
        return None
    if isinstance(value, int):
        return integer(1)(value)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)", str(value).strip().lower())
    unit = 1024 if found and found[3] else 1000
    size = int(float(found[1]) * unit ** " kmgt".index(found[2] or " ")) if found else 0
    if not size:
        raise InputError(f"got {value!r}, expected auto or a size such as 8GB or 900MB")
    return size


def level_or_off(value: Any) -> int | str:
    """Return a noise level, or "off"."""
    try:
        return value if value == "off" else integer(0, 999)(value)
    except InputError as error:
        raise InputError(f"{error}, or off") from None


def sha256_digest(value: Any) -> str:
    """Return a SHA-256 in lower-case hexadecimal."""
    digest = str(value).strip().lower()
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise InputError(f"got {value!r}, expected the 64 hexadecimal digits of a SHA-256")
    return digest


def strings(value: Any) -> tuple[str, ...]:
    """Return one or several prompts as a tuple."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise InputError(f"got {value!r}, expected a list of texts")
    return tuple(value)


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
