"""The steps of scripts/convert.py before and after the conversion."""

import argparse
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.checkpoint.convert import Converted

log = logging.getLogger(__name__)


def prediction_to_state(args: argparse.Namespace) -> str | None:
    """Return the prediction type to store in the result: that of --prediction, or the cached detection.

    Raises:
        CheckpointError: the file cannot be read.
    """
    if args.prediction or args.config:
        return args.prediction
    from ldm.checkpoint import identify
    from ldm.jobs.choosing import with_cached_verdict

    identity = with_cached_verdict(identify(args.input))
    return identity.prediction if identity.prediction_source == "probe" else None


def report(done: "Converted") -> None:
    """Log one line for each part that was kept, for each reason to drop tensors, and for the result."""
    for verb, amounts in (("kept", done.kept), ("dropped", done.dropped)):
        for what, (count, size) in amounts.items():
            log.info("%s %s: %d tensors, %.1f MB", verb, what, count, size / 1e6)
    for note in done.notes:
        log.info("%s", note)
    about = ", ".join(f"{k.removeprefix('sd.')} {v}" for k, v in done.metadata.items() if k.startswith("sd."))
    what = "folder" if done.is_folder else "file"
    log.info("wrote the %s %s (%s)", what, done.target, about or "of unknown kind")
