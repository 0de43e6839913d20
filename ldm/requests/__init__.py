"""Requests: what a user can ask for, one frozen dataclass a task, each option declared once as a field."""

import importlib
from typing import Any

from ldm.requests.fields import Field, Option, build, fields_of, form, names_of, option, record, request

__all__ = [
    "NAMES", "Field", "Option", "build", "fields_of", "find", "form", "names_of", "option", "record",
    "request",
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
}
"""name of a task, of its module here and of its script -> name of its request"""


def find(task: str) -> type:
    """Return the request class of a task."""
    return getattr(importlib.import_module(f"ldm.requests.{task}"), NAMES[task])


def __getattr__(name: str) -> Any:
    """Import a request when it is first used: a script needs one of them."""
    for task, found in NAMES.items():
        if found == name:
            return find(task)
    if name == "Request":
        return importlib.import_module("ldm.requests.base").Request
    raise AttributeError(f"module 'ldm.requests' has no attribute {name!r}")
