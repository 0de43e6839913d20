"""The command of a request: flags in, images in a folder, an exit code out."""

import argparse
from collections.abc import Sequence

from ldm.cli import app
from ldm.cli.flags import parser_of
from ldm.cli.reference_flags import folded
from ldm.requests import Request, build


def exit_code(cls: type[Request], description: str | None, argv: Sequence[str] | None = None) -> int:
    """Carry out the request of a command line and return the exit code."""
    return app.exit_code(parser_of(cls, description), lambda args: _carry_out(cls, args), argv)


def _carry_out(cls: type[Request], args: argparse.Namespace) -> None:
    from ldm.cli.progress import Bars
    from ldm.jobs.execute import execute
    from ldm.jobs.resume import resumed

    given = folded(cls, vars(args))
    resume = resumed(cls, given) if given.get("latents") is not None else None
    request = build(cls, given) if resume is None else resume.request
    execute(request, watch=Bars(request.quiet), resume=resume)
