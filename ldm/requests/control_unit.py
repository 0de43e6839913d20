"""What one --control says: which annotator makes a map of which image, and how the map steers sampling.

    canny:photo.png                                 a map of photo.png, of weight 1, in all steps
    canny,low=50,high=150:photo.png@0.8[0-0.6]      other thresholds, weight 0.8, the first 60 % of the steps
    map:edges.png                                   an image that is a map already
    canny                                           a map of --init-img
    inpaint                                         --init-img without the masked part, see INPAINT
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ldm.errors import InputError, nearest
from ldm.requests.fields import number

MAP = "map"
INPAINT = "inpaint"
"""an image whose transparent pixels are to be painted, or --init-img and --mask; their hint is -1"""
HIGHEST = {"weight": 10.0, "start": 1.0, "end": 1.0}
_STEERING = re.compile(r"(?:@(?P<weight>[^@\[\]/\\]*))?(?:\[(?P<start>[^\[\]]*)-(?P<end>[^\[\]]*)\])?$")


@dataclass(frozen=True)
class ControlUnit:
    """A map of an image, and how it steers sampling.

    Args:
        kind: name of an annotator (`ldm.annotators`), MAP for an image that is a map already, or INPAINT.
        image: path of the image, or the image; None stands for the task's own input image.
        weight: of the ControlNet's residuals.
        start, end: the part of the steps, from 0 to 1, in which it acts.
        settings: parameters of the annotator, such as (("low", 50),): texts, numbers and truth values.
        annotator: makes the map, once `ldm.tasks.steering.read_controls` has found it.

    Raises:
        InputError: a value is invalid.
    """

    kind: str
    image: Any = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    settings: tuple[tuple[str, Any], ...] = ()
    annotator: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not self.kind.strip():
            raise InputError(f"got {_shown(self.kind)}, expected a kind of control, such as canny")
        object.__setattr__(self, "kind", self.kind.strip().lower())
        if isinstance(self.image, (str, os.PathLike)) and not os.fspath(self.image):
            raise InputError("the file name is empty")
        if self.kind == MAP and self.image is None:
            raise InputError("map needs a file: map:FILE")
        if self.kind in (MAP, INPAINT) and self.settings:
            raise InputError(f"{self.kind} takes no {self.settings[0][0]}: the image is used as it is")
        settings = tuple((name, _setting(name, value)) for name, value in self.settings)
        object.__setattr__(self, "settings", settings)
        values = {name: _named(name, getattr(self, name), 0.0, high) for name, high in HIGHEST.items()}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if self.start >= self.end:
            raise InputError(f"the interval is {self.start:g}-{self.end:g}: expected START < END")

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
    pairs = tuple((name, _typed(word)) for name, _, word in (each.partition("=") for each in settings))
    image = os.path.expanduser(rest) if colon else None
    return ControlUnit(kind, image, settings=pairs, **steering)


def _of_mapping(values: dict[str, Any]) -> ControlUnit:
    if "file" in values:
        if "image" in values:
            raise InputError("a control has a file and an image; give one of them")
        values["image"] = values.pop("file")
    names = [each.name for each in fields(ControlUnit) if each.name != "annotator"]
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


def _setting(name: Any, value: Any) -> Any:
    """Return a setting as a record can hold it. Raises: InputError."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, (str, int, float)):
        raise InputError(f"{name}: got {_shown(value)}, expected a text, a number or a truth value")
    return value


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _named(name: str, value: Any, low: float, high: float) -> float:
    try:
        return number(low, high)(value)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _typed(word: str) -> Any:
    """Return a word as the number or truth value that it is, or as it is."""
    try:
        return json.loads(word)
    except ValueError:
        return word
