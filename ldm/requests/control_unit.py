"""What one --control says: which annotator makes a map of which image, and how the map steers sampling.

    canny:photo.png                                 a map of photo.png, of weight 1, in all steps
    canny,low=50,high=150:photo.png@0.8[0-0.6]      other thresholds, weight 0.8, the first 60 % of the steps
    map:edges.png                                   an image that is a map already
    canny                                           a map of --init-img
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ldm.errors import InputError, nearest
from ldm.requests.fields import build, fields_of, number, record

MAX_WEIGHT = 10.0
MAP = "map"
_STEERING = re.compile(r"(?:@(?P<weight>[^@\[\]/\\]*))?(?:\[(?P<start>[^\[\]]*)-(?P<end>[^\[\]]*)\])?$")


@dataclass(frozen=True)
class ControlUnit:
    """A map of an image, and how it steers sampling.

    Args:
        kind: an annotator of `ldm.annotators`, or "map" for an image that is a map already.
        image: path of the image, or the image; None stands for the task's own input image.
        weight: of the ControlNet's residuals.
        start, end: the part of the steps, from 0 to 1, in which it acts.
        settings: parameters of the annotator, such as (("low", 50),).

    Raises:
        InputError: a value is invalid.
    """

    kind: str
    image: Any = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _set(self, kind=_kind(self.kind))
        if isinstance(self.image, (str, os.PathLike)) and not os.fspath(self.image):
            raise InputError("the file name is empty")
        if self.kind == MAP and self.image is None:
            raise InputError("map needs a file: map:FILE")
        _set(self, weight=_named("weight", self.weight, 0.0, MAX_WEIGHT))
        _set(self, start=_named("start", self.start, 0.0, 1.0), end=_named("end", self.end, 0.0, 1.0))
        if self.start >= self.end:
            raise InputError(f"the interval is {self.start:g}-{self.end:g}: expected START < END")
        _set(self, settings=tuple(self._read_settings().items()))

    def _read_settings(self) -> dict[str, Any]:
        """Return the annotator's parameters with their types, without those at their defaults."""
        if self.kind == MAP:
            if self.settings:
                raise InputError(f"map takes no {self.settings[0][0]}: the image is used as it is")
            return {}
        given = self.annotator()
        return {name: value for name, value in record(given).items() if name in dict(self.settings)}

    def annotator(self, resolution: int | None = None, weights: str | None = None) -> Any:
        """Return the annotator with the parameters of this unit.

        Args:
            resolution: shorter side of what it sees, unless the unit has one; None is the image as it is.
            weights: file or folder of its network's weights.

        Raises: InputError for a parameter that the annotator does not have.
        """
        from ldm.annotators import find

        cls = find(self.kind)
        others = {"resolution": resolution} | ({} if weights is None else {"annotator_weights": weights})
        known = {name: value for name, value in others.items() if name in fields_of(cls)}
        return build(cls, known | dict(self.settings))

    def record(self) -> dict[str, Any]:
        """Return the unit as JSON, without what is at its default; `read_unit` makes it again."""
        about = {"kind": self.kind}
        file = self.image if isinstance(self.image, (str, os.PathLike)) else getattr(self.image, "file", None)
        if self.image is not None:
            about["file"] = None if file is None else os.fspath(file)
        for each in fields(self)[2:5]:
            if (value := getattr(self, each.name)) != each.default:
                about[each.name] = value
        return about | ({"settings": dict(self.settings)} if self.settings else {})

    def with_image(self, image: Any) -> "ControlUnit":
        return replace(self, image=image)


def read_unit(value: Any) -> ControlUnit:
    """Return the control that a text (see the module) or a mapping of a unit's fields describes.

    Raises: InputError.
    """
    if isinstance(value, ControlUnit):
        return value
    if isinstance(value, Mapping):
        return _of_mapping(dict(value))
    if not isinstance(value, str):
        raise InputError(f"got {_shown(value)}, expected KIND:FILE")
    head, colon, rest = value.partition(":")
    if not colon:                                       # the weight follows the kind
        head, steering = _split(head)
    else:
        rest, steering = _split(rest)
        if not rest:
            raise InputError(f"got {value!r}, expected KIND:FILE; the file name is empty")
    kind, *settings = head.split(",")
    pairs = tuple(tuple(each.partition("=")[::2]) for each in settings)
    image = os.path.expanduser(rest) if colon else None
    return ControlUnit(kind, image, settings=pairs, **steering)


def _of_mapping(values: dict[str, Any]) -> ControlUnit:
    if "file" in values:
        if "image" in values:
            raise InputError("a control has a file and an image; give one of them")
        values["image"] = values.pop("file")
    names = [each.name for each in fields(ControlUnit)]
    for name in values:
        if name not in names:
            hint = nearest(str(name), names) or f"; it has {', '.join(names)}"
            raise InputError(f"a control has no {_shown(name)}{hint}")
    if "kind" not in values:
        raise InputError("a control needs a kind")
    settings = values.pop("settings", None) or {}
    try:
        settings = dict(settings)
    except (TypeError, ValueError):
        raise InputError(f"settings: got {_shown(settings)}, expected names with values") from None
    return ControlUnit(**values, settings=tuple(settings.items()))


def read_units(value: Any) -> tuple[ControlUnit, ...]:
    """Return one or several controls."""
    several = isinstance(value, (list, tuple))
    return tuple(read_unit(each) for each in (value if several else [value]))


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Split off @WEIGHT[START-END], unless there is a file of the whole name."""
    found = _STEERING.search(text)
    if not found[0] or os.path.exists(os.path.expanduser(text)):
        return text, {}
    given = {name: each for name, each in found.groupdict().items() if each is not None}
    return text[: found.start()], given


def _kind(value: Any) -> str:
    """Return the name of a kind by its name or alias, in any case."""
    from ldm.annotators import ALIASES, KINDS, name_of

    known = [MAP, *KINDS]
    if isinstance(value, str) and value.strip().lower() == MAP:
        return MAP
    try:
        return name_of(value)
    except (InputError, AttributeError):
        hint = nearest(value.lower(), [*known, *ALIASES]) if isinstance(value, str) else ""
        raise InputError(
            f"unknown kind {_shown(value)}: expected one of {', '.join(known)}{hint}"
        ) from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _named(name: str, value: Any, low: float, high: float) -> float:
    try:
        return number(low, high)(value)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _set(unit: ControlUnit, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(unit, name, value)
