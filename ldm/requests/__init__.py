"""Requests: what a user can ask for. Each task has one frozen dataclass, and each option is one field."""

import importlib
from typing import Any

from ldm.requests.fields import Field, Option, build, fields_of, form, names_of, option, record, request

__all__ = [
    "NAMES", "Field", "Option", "build", "fields_of", "find", "form", "name_of", "names_of", "option",
    "record", "request",
]  # fmt: skip

NAMES = {
    "txt2img": "Txt2Img",
    "img2img": "Img2Img",
    "inpaint": "Inpaint",
    "outpaint": "Outpaint",
    "depth2img": "Depth2Img",
    "upscale": "Upscale",
    "unclip": "Unclip",
    "sample": "Sample",
    "controlnet": "Controlnet",
}
"""name of a task, of its modules here and in ldm/tasks and of its script -> class name of its request"""


def find(task: str) -> type:
    """Return the request class of a task."""
    return getattr(importlib.import_module(f"ldm.requests.{task}"), NAMES[task])


def name_of(cls: type) -> str:
    """Return the task of a request class."""
    return cls.__name__.lower()


def __getattr__(name: str) -> Any:
    """Import a request class when it is first used, because a script needs only one of them."""
    if NAMES.get(name.lower()) == name:
        return find(name.lower())
    if name == "Request":
        return importlib.import_module("ldm.requests.base").Request
    raise AttributeError(f"module 'ldm.requests' has no attribute {name!r}")
