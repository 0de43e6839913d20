"""Say what a conversion kept and dropped."""

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.checkpoint.convert import Converted

log = logging.getLogger(__name__)


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
