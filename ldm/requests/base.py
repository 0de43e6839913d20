"""The base of every request."""

from ldm.errors import InputError
from ldm.requests.fields import fields_of
from ldm.requests.groups import Guidance, Memory, Messages, Model, Output, Randomness


class Request(Guidance, Randomness, Memory, Model, Output, Messages):
    """What can be asked for; the options that every task has.

    Build one by keyword, by `ldm.requests.build` from a mapping, or on a command line. All values are checked
    when it is made, and it never changes: `dataclasses.replace` makes another one.

    Raises: InputError naming the option.
    """

    def __post_init__(self) -> None:
        for name, each in fields_of(type(self)).items():
            try:
                object.__setattr__(self, name, each.read(getattr(self, name)))
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
