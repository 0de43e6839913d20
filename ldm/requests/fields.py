"""Options as fields of frozen dataclasses: each is declared once, and everything else is derived from it.

    steps: int | None = option(None, "--steps", low=1, usual=50, help="sampling steps")

This line defines the flag (`ldm.cli.flags`) with its help and bounds, the key in a job line and in image
metadata (`record`, `build`), and the component of a form (`form`). A request is a dataclass whose bases are
groups of options; its values are flat, `request.steps`.

A default of None means "the model's own": `ldm.requests.resolving` fills in what the model recommends, or
else `usual`.
"""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

from ldm.errors import InputError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """The declaration of a field: how users see and set it.

    Args:
        flags: flags on the command line, of which the first names the option; empty if it has none.
        help: one sentence, to which the default is appended.
        metavar: placeholder of the value in --help.
        low, high: inclusive bounds of a number.
        read: converts text or a typed value to the field's value; raises ValueError or InputError.
        words: the flag takes several words, and `read` gets them as a list.
        is_repeatable: of `words`: the flag may be given again for more of them.
        bare: value of the flag if no word follows; None if a word is required.
        usual: replaces None if the model recommends no value.
        default: text for the default in --help; None shows the value, "" shows nothing.
        changes_image: False if the option does not affect the images, so that it may change on resume.
        is_file: the value is the path of a file or folder to read.
        is_image: the value is an image or several, see `ldm.tasks.inputs.read_images`.
        section: (title, note) of the section in --help and in forms; None is that of the group.
    """

    flags: tuple[str, ...]
    help: str
    metavar: str | tuple[str, ...] | None = None
    low: float | None = None
    high: float | None = None
    read: Callable[[Any], Any] | None = None
    words: bool = False
    is_repeatable: bool = False
    bare: Any = None
    usual: Any = None
    default: str | None = None
    changes_image: bool = True
    is_file: bool = False
    is_image: bool = False
    section: tuple[str, str] | None = None


@dataclass(frozen=True)
class Field:
    """An option of a request class: its declaration and the content of its annotation."""

    name: str
    option: Option
    kind: type                    # of one value
    many: bool                    # a tuple of values
    choices: tuple[str, ...]      # of a Literal
    may_be_none: bool
    default: Any
    section: tuple[str, str]

    @property
    def flag(self) -> str:
        """The flag that names the option in messages; the field's name if it has none."""
        return self.option.flags[0] if self.option.flags else self.name

    def read(self, value: Any) -> Any:
        """Return the field's value for text, a JSON value or a Python value; None stays None if allowed.

        Raises:
            InputError: the value is invalid; the text does not contain the option's name.
        """
        if value is None and (self.may_be_none or self.kind is Any):
            return None
        if self.option.is_file or self.option.metavar == "DIR":
            value = _expanded(value)
        if self.option.read is not None:
            return _checked(self.option.read, value)
        if not self.many:
            return self._one(value)
        if not isinstance(value, (list, tuple)):
            value = [value]
        return tuple(self._one(each) for each in value)

    def _one(self, value: Any) -> Any:
        if self.choices:
            return choice(value, self.choices)
        low, high = self.option.low, self.option.high
        if self.kind is bool:
            return boolean(value)
        if self.kind is int:
            return integer(low, high)(value)
        if self.kind is float:
            return number(low, high)(value)
        return text(value) if self.kind is str else value


def option(default: Any, *flags: str, help: str, **about: Any) -> Any:
    """Declare a field as an option.

    Args:
        default: value of the field.
        about: other arguments of `Option`, with `default_text` for `Option.default`.
    """
    words = about.pop("default_text", None)
    return field(default=default, metadata={"option": Option(flags, help, default=words, **about)})


def request(**defaults: Any) -> Callable[[type[T]], type[T]]:
    """Turn a class into a request: a frozen, keyword-only dataclass of its own and its bases' options.

    The bases are groups of options: plain classes whose SECTION is their (title, note). `defaults` replace
    their defaults. If a group's default is None, "the model's own", it stays None and the new value replaces
    `Option.usual`.
    """

    def decorate(cls: type[T]) -> type[T]:
        first, *others = cls.__mro__[1:]
        annotations, fields = {}, {}
        for owner in (first, cls, *others):  # in the order of --help
            inherited = vars(owner).get("FIELDS", {})  # of a request, which this one extends
            for name, hint in vars(owner).get("__annotations__", {}).items():
                if name in annotations:
                    continue
                annotations[name] = hint
                if name in inherited and name not in vars(cls):
                    about, default = inherited[name].option, inherited[name].default
                else:
                    declared = getattr(cls, name)
                    about, default = declared.metadata["option"], declared.default
                if name in defaults and default is None and about.usual is not None:
                    about = dataclasses.replace(about, usual=defaults[name])
                else:
                    default = defaults.get(name, default)
                section = about.section or getattr(owner, "SECTION", ("options", ""))
                section = inherited[name].section if name in inherited else section
                fields[name] = Field(name, about, *_kind(hint), default, section)
        for name, each in fields.items():
            setattr(cls, name, field(default=each.default, metadata={"option": each.option}))
        cls.__annotations__, cls.FIELDS = annotations, fields
        return dataclass(frozen=True, kw_only=True)(cls)

    return decorate


def fields_of(cls: type) -> dict[str, Field]:
    """Return the options of a request class by name, in the order of --help."""
    return cls.FIELDS


def read_values(request: Any) -> None:
    """Replace the values of a new request by what their options read, and check them.

    Raises:
        InputError: a value is invalid; the text names the option.
    """
    for name, each in fields_of(type(request)).items():
        try:
            object.__setattr__(request, name, each.read(getattr(request, name)))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error


def names_of(group: type) -> tuple[str, ...]:
    """Return the names of a group's own options."""
    return tuple(vars(group)["__annotations__"])


def _kind(hint: Any) -> tuple[type, bool, tuple[str, ...], bool]:
    """Return (type of one value, whether it is a tuple, the choices, whether None is allowed)."""
    if get_origin(hint) in (typing.Union, types.UnionType):
        others = [each for each in get_args(hint) if each is not type(None)]
        kind, many, choices, _ = _kind(others[0])
        return kind, many, choices, len(others) < len(get_args(hint))
    if get_origin(hint) is Literal:
        return str, False, get_args(hint), False
    if get_origin(hint) is tuple:
        kind, _, choices, _ = _kind(get_args(hint)[0])
        return kind, True, choices, False
    return hint, False, (), False


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return a request with the given values, text or typed; others have their defaults.

    Raises:
        InputError: a name is unknown (the text suggests the closest), or a value is invalid.
    """
    fields = fields_of(cls)
    for name in values:
        if name not in fields:
            raise InputError(f"{cls.__name__} has no option {name!r}{nearest(name, fields)}")
    return cls(**values)


def record(request: Any, whole: bool = False) -> dict[str, Any]:
    """Return the options of a request that differ from their defaults as JSON values; `whole`: all options.

    Images read from files are recorded as paths, and arrays as None. `build` makes an equal request again,
    but for arrays.
    """
    found = {}
    for name, each in fields_of(type(request)).items():
        value = getattr(request, name)
        is_default = value is None if each.default is None else value == each.default
        if whole or not is_default:
            found[name] = _plain(value, each.option.is_file)
    return found


def _plain(value: Any, is_file: bool) -> Any:
    if isinstance(value, tuple):
        return [_plain(each, is_file) for each in value]
    if hasattr(value, "record"):
        return value.record()
    if not is_file or isinstance(value, str):
        return value
    return getattr(value, "file", None)


def form(cls: type) -> Iterator[dict[str, Any]]:
    """Yield a description of each option that has a flag, for a web form."""
    for name, each in fields_of(cls).items():
        about = each.option
        if not about.flags:
            continue
        bounded = about.low is not None and about.high is not None
        component = (
            "choice" if each.choices else "checkbox" if each.kind is bool else "file" if about.is_file
            else "slider" if bounded else "number" if each.kind in (int, float) else "text"
        )  # fmt: skip
        usual = about.usual if each.default is None else each.default
        yield {
            "name": name, "section": each.section[0], "component": component, "many": each.many,
            "choices": each.choices, "low": about.low, "high": about.high, "default": usual,
            "help": about.help,
        }  # fmt: skip


def _expanded(value: Any) -> Any:
    """Return a path, or each of several, as text with ~ expanded; other values as they are."""
    if isinstance(value, (list, tuple)):
        return [_expanded(each) for each in value]
    return os.path.expanduser(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else value


def _checked(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from error


def choice(value: Any, choices: tuple[str, ...]) -> str:
    """Return one of the choices."""
    if value not in choices:
        hint = nearest(str(value), choices)
        raise InputError(f"got {value!r}, expected one of {', '.join(choices)}{hint}")
    return value


def boolean(value: Any) -> bool:
    """Return a bool, or the bool that "true" or "false" names."""
    named = {"true": True, "false": False}.get(str(value).lower())
    if named is None:
        raise InputError(f"got {value!r}, expected true or false")
    return named


def integer(low: int | None = None, high: int | None = None) -> Callable[[Any], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def whole(value: Any) -> int | None:
        return int(value) if isinstance(value, str) or value == value // 1 else None

    return _bounded(whole, "a whole number", low, high)


def number(low: float | None = None, high: float | None = None) -> Callable[[Any], float]:
    """Return a reader of finite numbers from `low` to `high`."""
    return _bounded(float, "a number", low, high)


def _bounded(
    convert: Callable[[Any], T | None], what: str, low: float | None, high: float | None
) -> Callable[[Any], T]:
    least, most = (f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in (low, high))
    bounds = "" if low is None else f" from {least}" + (" up" if high is None else f" to {most}")
    low, high = -math.inf if low is None else low, math.inf if high is None else high

    def read(value: Any) -> T:
        try:
            found = None if isinstance(value, bool) else convert(value)
        except (TypeError, ValueError, OverflowError):
            found = None
        if found is None or not math.isfinite(found) or not low <= found <= high:
            raise InputError(f"got {value!r}, expected {what}{bounds}")
        return found

    return read


def text(value: Any) -> str:
    """Return text, or a path as text."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise InputError(f"got {value!r}, expected text")
    return value
