"""The base of every request."""

from ldm.errors import InputError
from ldm.requests.fields import fields_of
from ldm.requests.groups import Guidance, Memory, Messages, Model, Output, Randomness


class Request(Guidance, Randomness, Memory, Model, Output, Messages):
    """The base of all requests, with the options that every task has.

    Create a request with keyword arguments, from a mapping with `ldm.requests.build`, or from a command line.
    Its values are checked on creation. It is immutable; `dataclasses.replace` returns a changed copy.

    Raises:
        InputError: a value is invalid; the text names the option.
    """

    def __post_init__(self) -> None:
        for name, each in fields_of(type(self)).items():
            try:
                object.__setattr__(self, name, each.read(getattr(self, name)))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
