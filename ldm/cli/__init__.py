"""The command line: what parses flags, prints and exits. Everything else is in the library.

    if __name__ == "__main__":
        main(Img2Img, __doc__)
"""

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from ldm.requests import Request


def main(cls: "type[Request]", description: str | None) -> NoReturn:
    """Be the script of a request: parse the command line, carry it out, and exit with its code."""
    from ldm.cli.command import exit_code

    sys.exit(exit_code(cls, description))
