"""The state of a run on disk: written atomically, read safely, the last few kept.

    checkpoints/step-00000200.ckpt      complete state after that many optimizer steps
    checkpoints/last.ckpt               the newest of them (a hard link where the file system has them)

A file appears under its name only when it is complete and on the disk (temporary file, fsync, rename), so a
kill at any moment leaves the previous one. Contents are tensors and plain values: reading never executes
anything.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from ldm.errors import CheckpointError, is_out_of_memory
from ldm.files.atomic import atomic_write

log = logging.getLogger(__name__)

FORMAT = 1


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where links are not to be had."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def save_state(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as the newest checkpoint of `folder` and remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['step']:08d}.ckpt"
    atomic_write(path, lambda temporary: torch.save({"format": FORMAT, **state}, temporary))
    atomic_write(folder / "last.ckpt", lambda temporary: link_or_copy(path, temporary))
    for old in sorted(folder.glob("step-*.ckpt"))[: -max(keep, 1)]:
        old.unlink()
    return path


def load_state(folder: Path) -> dict[str, Any]:
    """Read a checkpoint, or the newest complete one of `folder`; a damaged one is passed over with a warning.

    Raises:
        CheckpointError: there is none that can be read.
    """
    candidates = [folder / "last.ckpt", *sorted(folder.glob("step-*.ckpt"), reverse=True)]
    candidates = [folder] if folder.suffix == ".ckpt" else candidates
    for path in candidates:
        if not path.exists():
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen kinds for a torn file
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            log.warning("%s cannot be read (%s); trying the one before", path, str(error).splitlines()[0])
            continue
        if state.get("format") != FORMAT:
            raise CheckpointError(f"{path}: format {state.get('format')}, expected {FORMAT}")
        return state
    raise CheckpointError(f"{folder}: no readable checkpoint; start without --resume")


def has_state(folder: Path) -> bool:
    """Say whether `folder` holds any checkpoint."""
    return (folder / "last.ckpt").exists() or any(folder.glob("step-*.ckpt"))
