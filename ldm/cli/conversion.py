"""What scripts/convert.py finds out before a conversion, and says after it."""

import argparse
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.checkpoint.convert import Converted

log = logging.getLogger(__name__)


def prediction_to_state(args: argparse.Namespace) -> str | None:
    """Return what the result is to say that it predicts: as asked, else what a probe of the file has found.

    Raises:
        CheckpointError: as loading does.
    """
    if args.prediction or args.config:
        return args.prediction
    from ldm.checkpoint import identify
    from ldm.cli.choice import remembered

    identity = remembered(identify(args.input))
    return identity.prediction if identity.prediction_source == "probe" else None


def report(done: "Converted") -> None:
    """Log a line for each part kept, for each reason to drop, for what is stated, and for the result."""
    for verb, amounts in (("kept", done.kept), ("dropped", done.dropped)):
        for what, (count, size) in amounts.items():
            log.info("%s %s: %d tensors, %.1f MB", verb, what, count, size / 1e6)
    for note in done.notes:
        log.info("%s", note)
    said = ", ".join(f"{k.removeprefix('sd.')} {v}" for k, v in done.metadata.items() if k.startswith("sd."))
    what = "folder" if done.is_folder else "file"
    log.info("wrote the %s %s (%s)", what, done.target, said or "of unknown kind")
