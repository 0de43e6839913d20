"""A low-resolution preview of the batch during sampling: one pixel for each latent of x_0."""

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.files.atomic import atomic_write
from ldm.jobs.opening import OpenedModel

if TYPE_CHECKING:
    from ldm.imaging.preview import LatentToRGB
    from ldm.samplers.loop import Step

log = logging.getLogger(__name__)


class Preview:
    """One image file that shows the batch and is replaced during sampling.

    Args:
        columns: images per row.
    """

    def __init__(self, path: Path, columns: int, opened: OpenedModel) -> None:
        self.path = path
        self.columns = columns
        self.map = preview_map(opened)
        self._failed = False

    def show(self, step: "Step") -> None:
        """Write x_0 of a step; a preview that cannot be written does not end the run."""
        try:
            self._write(step)
        except OSError as error:
            if not self._failed:
                log.warning("cannot write %s: %s; continuing without previews", self.path, error.strerror)
            self._failed = True

    def _write(self, step: "Step") -> None:
        from PIL import Image

        from ldm.imaging.grid import make_grid

        buffer = io.BytesIO()
        sheet = make_grid(self.map.images(step.x_0), self.columns)
        Image.fromarray(sheet).save(buffer, "PNG", compress_level=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = buffer.getvalue()
        atomic_write(self.path, lambda path: path.write_bytes(data), durable=False)  # the next comes soon


def preview_map(opened: OpenedModel) -> "LatentToRGB":
    """Return the map from latents to colours: the one next to the model's YAML, that of SD, or a grey one."""
    from ldm.imaging import preview

    model = opened.model
    path = Path(opened.config).with_name(Path(opened.config).stem + "_preview.json")
    if path.is_file():
        found = preview.load_map(path)
        if len(found.factors) == model.channels:
            return found
    is_sd = model.channels == 4 and abs(float(model.scale_factor) - preview.SD_SCALE_FACTOR) < 1e-6
    if is_sd and model.downsampling_factor == 8:
        return preview.SD
    log.info("no map from latents to colours is known for this model: previews show shapes in grey")
    return preview.grey_map(model.channels)
