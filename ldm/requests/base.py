"""The base of every request."""

from ldm.requests.fields import read_values
from ldm.requests.groups import Guidance, Memory, Messages, Model, Output, Randomness


class Request(Guidance, Randomness, Memory, Model, Output, Messages):
    """The base of all requests, with the options that every task has.

    Create a request with keyword arguments, from a mapping with `ldm.requests.build`, or from a command line.
    Its values are checked on creation. It is immutable; `dataclasses.replace` returns a changed copy.

    Raises:
        InputError: a value is invalid; the text names the option.
    """

    def __post_init__(self) -> None:
        read_values(self)
