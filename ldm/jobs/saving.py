"""Save the images of a task: numbered files with watermark and metadata, a grid, and a summary.

OUTDIR/samples/00000.png ...      one file per image, or .jpg or .webp with --format
OUTDIR/grid-0000.png              all images of the run on one sheet, watermarked as a whole
OUTDIR/samples/00000.latents.safetensors    with --save-latents, next to each image
OUTDIR/depth/00000.png            with --save-depth, the depth map of the run
OUTDIR/controls/00000.png ...     with --save-control, the maps that ControlNets followed
OUTDIR/interrupted-00000.safetensors        the state of a run that was interrupted
"""

import errno
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import BadImageError, InputError
from ldm.files.atomic import atomic_write
from ldm.files.numbering import NumberedFiles
from ldm.jobs.record import image_record
from ldm.requests import Request, record
from ldm.wording import counted, script

if TYPE_CHECKING:
    import numpy as np

    from ldm.imaging.paste import Paste
    from ldm.tasks.batch import Batch
    from ldm.tasks.latents import Position

LISTED_NAMES = 8
Place = tuple[int, int]
"""number of a batch, and place in it"""

log = logging.getLogger(__name__)


class Saving:
    """The output folder of one run.

    Attributes:
        run: what every image of the run records, see `ldm.jobs.record`; set before the first batch is added.
        saved: the files written so far.
    """

    def __init__(self, request: Request) -> None:
        """Check that the folder will do; the first image makes it."""
        if request.skip_existing and request.no_metadata:
            raise InputError("--skip-existing identifies images by their metadata; leave --no-metadata out")
        self.request = request
        self.outdir = checked_outdir(request.outdir)
        self.columns = request.n_rows or request.n_samples
        self.trained_side = 0  # of the model's images; says whether those can carry the watermark
        self.run: dict[str, Any] = {}
        self.saved: list[Path] = []
        self.existing: dict[Place, Path] = {}  # images of this run that were there before
        self.refused: list[str] = []  # prompts of images that are black or NaN
        self.grid: dict[Place, np.ndarray] | None = None if request.no_grid else {}
        formats = {request.format, "png"}
        self._samples = {each: NumberedFiles(self.outdir / "samples", f"%05d.{each}") for each in formats}
        self._grids = {  # samples/ does not count
            each: NumberedFiles(self.outdir, f"grid-%04d.{each}", foreign=1) for each in formats
        }
        self._depths = NumberedFiles(self.outdir / "depth", "%05d.png")
        self._maps = NumberedFiles(self.outdir / "controls", "%05d.png")
        self._stops = NumberedFiles(self.outdir, "interrupted-%05d.safetensors", foreign=None)
        self._prompts: dict[Place, str] = {}  # of the images on the grid
        self._logged: set[tuple] = set()
        self._started = time.perf_counter()

    def add(self, batch: "Batch") -> None:
        """Save the images of a batch; images that are black or NaN are left out, and `check` then raises."""
        from ldm.imaging.colour import is_black, to_uint8
        from ldm.imaging.depth import depth_png
        from ldm.imaging.writing import encoded

        if getattr(self.request, "save_depth", False) and batch.index == 0 and not self.existing:
            self._depths.save(depth_png(batch.extras["depth"]))
        if getattr(self.request, "save_control", False) and batch.index == 0 and not self.existing:
            for control in batch.maps:
                self.saved.append(self._maps.save(encoded(control, "png", None, None, None)))
        for position, (values, prompt) in enumerate(zip(batch.images, batch.prompts, strict=True)):
            place = batch.index, batch.offset + position
            if place in self.existing:
                continue
            image = to_uint8(values[None])[0] if bool(values.isfinite().all()) else None
            if image is None or is_black(image):
                self.refused.append(prompt)
                continue
            about = image_record(self.run, batch, position)
            self.saved.append(self._write(self._samples, image, about, batch.paste))
            if getattr(self.request, "save_latents", False):
                self._save_latents(self.saved[-1], batch, position, about)
            if self.grid is not None:
                self.grid[place] = image if batch.paste is None else batch.paste.shown(image)
                self._prompts[place] = prompt

    def save_grid(self) -> None:
        """Save all images of the run on one sheet, if there are several, unless --no-grid is given."""
        import numpy as np

        from ldm.imaging.files import open_image
        from ldm.imaging.grid import make_grid
        from ldm.imaging.metadata import read_record

        if not self.grid:
            return
        prompts = self._prompts | {k: read_record(file)["prompt"] for k, file in self.existing.items()}
        images = self.grid | {place: np.asarray(open_image(file)) for place, file in self.existing.items()}
        if len(images) > 1:
            sheet = make_grid([images[place] for place in sorted(images)], self.columns)
            height, width = next(iter(images.values())).shape[:2]
            about = {
                "prompt": "\n".join(dict.fromkeys(prompts[place] for place in sorted(prompts))),
                "images": len(images),
                "image_size": [width, height],
            }
            self.saved.append(self._write(self._grids, sheet, self.run | about))

    def check(self) -> None:
        """Raise BadImageError if an image was black or NaN and therefore not saved."""
        if self.refused:
            prompts = ", ".join(repr(prompt) for prompt in dict.fromkeys(self.refused[:LISTED_NAMES]))
            raise BadImageError(
                f"{counted(len(self.refused), 'image')} came out all black or NaN, not saved "
                f"({prompts}); try another --seed or --precision full, and check that the weights match the "
                "configuration"
            )

    def summary(self) -> str:
        """Return a sentence with the saved files, their folder, and the time that passed."""
        names = [str(path.relative_to(self.outdir)) for path in self.saved]
        if len(names) > LISTED_NAMES:
            names = [*names[:2], "...", *names[-2:]]
        files, seconds = counted(len(self.saved), "file"), time.perf_counter() - self._started
        return f"{files} in {self.outdir} after {seconds:.1f} s: {', '.join(names)}"

    def save_stopped(self, position: "Position") -> Path:
        """Save the state of an interrupted run."""
        from ldm.tasks.latents import stopped_file

        return self._stops.save(stopped_file(position, self.run | self._command()))

    def _command(self) -> dict[str, Any]:
        """Return what resuming needs in addition to an image's record: all options and the working folder."""
        return {"command": record(self.request), "folder": os.getcwd()}

    def _save_latents(self, image: Path, batch: "Batch", position: int, about: dict[str, Any]) -> None:
        from ldm.tasks.latents import final_file

        height, width = batch.images.shape[-2:]
        size = {"width": width, "height": height, "images_in_batch": len(batch.images)}
        data = final_file(batch.latents[position], about | size | self._command())
        atomic_write(latents_name(image), lambda path: path.write_bytes(data))

    def _write(
        self,
        files: dict[str, NumberedFiles],
        image: "np.ndarray",
        about: dict[str, Any],
        paste: "Paste | None" = None,
    ) -> Path:
        from ldm.imaging.writing import MOST_PIXELS, encoded, holds

        height, width = image.shape[:2]
        format, quality = self.request.format, self.request.quality
        if (most := MOST_PIXELS.get(format)) and max(height, width) > most:
            message = "%s holds at most %d pixels per side: larger images are saved as png"
            self._say(logging.WARNING, message, format, most)
            format = "png"
        image, mark = self._marked(image, format, paste)
        about = about | {"width": width, "height": height, "watermark": mark}
        profile = None if paste is None else paste.profile
        record = None if self.request.no_metadata else about
        if record is not None and not holds(format, record):
            message = "the metadata are too long for a jpg file, which %s cannot make again: use png"
            self._say(logging.WARNING, message, script("rerun"))
        return files[format].save(encoded(image, format, quality, record, profile))

    def _marked(
        self, image: "np.ndarray", format: str, paste: "Paste | None" = None
    ) -> tuple["np.ndarray", str | None]:
        """Return the image with its watermark (only in its repainted part) and what to record about it."""
        from ldm.imaging import watermark
        from ldm.imaging.paste import opaque
        from ldm.imaging.writing import decoded, encoded

        wanted = self.request.watermark
        fits, mark = wanted != "off" and watermark.fits(image), None
        if fits:
            mark = watermark.mark_as_reference if wanted == "reference" else watermark.mark
        if paste is not None:
            image = paste.onto(image, mark)
        elif mark is not None:
            image = mark(image)
        if not fits:
            if wanted != "off":
                self._say(
                    logging.INFO if self.trained_side**2 >= watermark.MIN_PIXELS else logging.DEBUG,
                    "images of fewer than %d pixels cannot carry the watermark and are saved without it",
                    watermark.MIN_PIXELS,
                )
            return image, None
        quality = self.request.quality
        seen = image if format == "png" else decoded(encoded(image, format, quality, None, None))
        if watermark.carries(opaque(seen)):
            return image, watermark.PAYLOAD.decode()
        if format != "png":
            self._say(logging.INFO, "the watermark is lost in %s of this quality", format)
        elif paste is None:
            self._say(
                logging.WARNING,
                "the watermark cannot be read back from an image, because its colours are too uniform or "
                "extreme",
            )
        return image, f"{watermark.PAYLOAD.decode()} (unreadable)"

    def _say(self, level: int, *message: Any) -> None:
        """Log a message only once, even if it applies to many images."""
        if message not in self._logged:
            log.log(level, *message)
        self._logged.add(message)


def checked_outdir(outdir: str) -> Path:
    """Return --outdir as a path; the first image creates it.

    Raises: InputError if it cannot be a folder or cannot be written to.
    """
    if not outdir:
        raise InputError("--outdir needs a folder")
    path = Path(outdir)
    exists = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not exists.is_dir():
        raise InputError(f"--outdir {path}: cannot write there, {exists} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=exists):  # permissions do not suffice: /proc takes no files
            return path
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise InputError(
            f"--outdir {path}: cannot write there, files cannot be created in {exists}; give another folder"
        ) from error


def latents_name(image: Path) -> Path:
    """Return the path of the latents file next to an image."""
    return image.with_suffix(".latents.safetensors")
