"""What happens between the steps of a batch: the progress bar, previews, and whether to stop.

OUTDIR/preview.png      after every N steps, the clean latents that the step aimed at, a pixel for each latent
"""

import argparse
import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli.inputs import chosen_outdir
from ldm.cli.model import OpenedModel
from ldm.cli.progress import step_bar
from ldm.cli.stopping import stop_asked

if TYPE_CHECKING:
    from ldm.imaging.preview import LatentToRGB
    from ldm.samplers.loop import Step

log = logging.getLogger(__name__)


def watched(
    args: argparse.Namespace, opened: OpenedModel, what: str
) -> "Callable[[Iterable[Step], int], Iterator[Step]]":
    """Return what a task calls to watch the steps of a batch; it ends early where a signal asked to stop."""
    bar = step_bar(what, args.quiet)
    every = getattr(args, "preview_every", None)
    preview = Preview(args, opened) if every else None

    def track(steps: "Iterable[Step]", total: int) -> "Iterator[Step]":
        if stop_asked():
            return
        for taken, step in enumerate(bar(steps, total), start=1):
            if preview is not None and taken % every == 0:
                preview.show(step)
            yield step
            if stop_asked():
                return

    return track


class Preview:
    """One small picture of the batch, replaced as it goes on."""

    def __init__(self, args: argparse.Namespace, opened: OpenedModel) -> None:
        self.path = chosen_outdir(args) / "preview.png"
        self.columns = args.n_rows or args.n_samples
        self.map = preview_map(opened)
        self._failed = False

    def show(self, step: "Step") -> None:
        """Put x_0 of a step there; a run is not lost because a preview cannot be written."""
        try:
            self._write(step)
        except OSError as error:
            if not self._failed:
                log.warning("cannot write %s: %s; going on without", self.path, error.strerror)
            self._failed = True

    def _write(self, step: "Step") -> None:
        from PIL import Image

        from ldm.files.atomic import TEMPORARY_PREFIX
        from ldm.imaging.grid import make_grid

        buffer = io.BytesIO()
        sheet = make_grid(self.map.pictures(step.x_0), self.columns)
        Image.fromarray(sheet).save(buffer, "PNG", compress_level=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-preview.tmp")
        try:
            temporary.write_bytes(buffer.getvalue())  # not through to the disk: the next one comes soon
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


def preview_map(opened: OpenedModel) -> "LatentToRGB":
    """Return the map beside the model's YAML, that of SD, or a guess, and say so."""
    from ldm.imaging import preview

    model = opened.model
    beside = Path(opened.config).with_name(Path(opened.config).stem + "_preview.json")
    if beside.is_file():
        found = preview.load_map(beside)
        if len(found.factors) == model.channels:
            return found
    is_sd = model.channels == 4 and abs(float(model.scale_factor) - preview.SD_SCALE_FACTOR) < 1e-6
    if is_sd and model.downsampling_factor == 8:
        return preview.SD
    log.info("no map from latents to colours is known for this model: previews show shapes in grey")
    return preview.guessed(model.channels)
