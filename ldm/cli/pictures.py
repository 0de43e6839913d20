"""Save what a task makes: numbered PNG files with watermark and metadata, a grid, and a last word.

OUTDIR/samples/00000.png ...      one file a picture
OUTDIR/grid-0000.png              all pictures of the run on one sheet, marked as a whole
OUTDIR/samples/00000.latents.safetensors    with --save-latents, beside each picture
OUTDIR/interrupted-00000.safetensors        where a run was stopped
"""

import argparse
import io
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ldm
from ldm.cli.inputs import chosen_eta, chosen_outdir, chosen_spacing
from ldm.cli.latents import latents_name
from ldm.cli.model import OpenedModel
from ldm.cli.stopping import heeding_signals
from ldm.cli.watching import watched
from ldm.errors import BadPictureError, Stopped
from ldm.jobs.numbering import NumberedFiles

if TYPE_CHECKING:
    import numpy as np

    from ldm.imaging.paste import Paste
    from ldm.tasks.latents import Position
    from ldm.tasks.sampling import Batch

# Flags that say how to talk or where to save, not what to make.
NOT_RECORDED = (
    "quiet", "debug", "outdir", "no_metadata", "preview_every", "save_latents", "task", "command", "goes_on",
    "tasks", "demo", "usual_eta", "demo_defaults", "given",
)  # fmt: skip
LISTED_NAMES = 8
PROMPTS = {"prompt_syntax": "plain", "clip_skip": None, "long_prompts": "chunk"}  # recorded where others
GUIDANCE = ("guidance_rescale", "guidance_interval", "dynamic_threshold")  # recorded where they are on

log = logging.getLogger(__name__)


class Pictures:
    """The output folder of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Check that the folder will do; the first picture makes it."""
        self.outdir = chosen_outdir(args)
        self.columns = args.n_rows or args.n_samples
        self.watermark = args.watermark == "on"
        self.metadata = not args.no_metadata
        self.save_latents = getattr(args, "save_latents", False)
        self.command = getattr(args, "command", [])
        self.saved: list[Path] = []
        self.refused: list[str] = []  # prompts of pictures that are black or NaN
        self.grid: list[np.ndarray] | None = None if args.no_grid else []
        self._samples = NumberedFiles(self.outdir / "samples", "%05d.png")
        self._grids = NumberedFiles(self.outdir, "grid-%04d.png", foreign=1)  # samples/ does not count
        self._stops = NumberedFiles(self.outdir, "interrupted-%05d.safetensors", foreign=None)
        self._prompts: dict[str, None] = {}  # those on the grid, each once, in order
        self._said: set[tuple] = set()
        self._started = time.perf_counter()

    def save(self, batch: "Batch", record: dict[str, Any]) -> None:
        """Save a batch, one file a picture; `record` is what every picture of the run remembers.

        A black picture, or one of NaN, is left out: `check` then raises.
        """
        from ldm.imaging.colour import is_black, to_uint8
        from ldm.imaging.paste import opaque

        for position, (values, prompt) in enumerate(zip(batch.images, batch.prompts, strict=True)):
            image = to_uint8(values[None])[0] if bool(values.isfinite().all()) else None
            if image is None or is_black(image):
                self.refused.append(prompt)
                continue
            where = {
                "prompt": prompt,
                "iteration": batch.iteration,
                "batch": batch.index,
                "index_in_batch": batch.offset + position,
            }
            if batch.seeds:
                where["seed"] = batch.seeds[position]
            if batch.computed_in:
                where["computed_in"] = batch.computed_in
            self.saved.append(self._write(self._samples, image, record | where, batch.paste))
            if self.save_latents:
                self._keep_latents(self.saved[-1], batch, position, record | where)
            if self.grid is not None:
                self.grid.append(image if batch.paste is None else opaque(batch.paste.onto(image)))
                self._prompts[prompt] = None

    def save_grid(self, record: dict[str, Any]) -> None:
        """Save all pictures of the run on one sheet, unless --no-grid."""
        from ldm.imaging.grid import make_grid

        if self.grid:
            sheet = make_grid(self.grid, self.columns)
            height, width = self.grid[0].shape[:2]
            about = {
                "prompt": "\n".join(self._prompts),
                "pictures": len(self.grid),
                "picture_size": [width, height],
            }
            self.saved.append(self._write(self._grids, sheet, record | about))

    def check(self) -> None:
        """Raise BadPictureError if a picture was black or NaN, and so not saved."""
        if self.refused:
            prompts = ", ".join(repr(prompt) for prompt in dict.fromkeys(self.refused[:LISTED_NAMES]))
            raise BadPictureError(
                f"pictures that came out all black or NaN and were not saved: {len(self.refused)} "
                f"({prompts}); try another --seed or --precision full; do the weights fit the configuration?"
            )

    def summary(self) -> str:
        """Say what was saved where, and how long it took."""
        names = [str(path.relative_to(self.outdir)) for path in self.saved]
        if len(names) > LISTED_NAMES:
            names = [*names[:2], "...", *names[-2:]]
        files = "1 file" if len(self.saved) == 1 else f"{len(self.saved)} files"
        return (
            f"{files} in {self.outdir} after {time.perf_counter() - self._started:.1f} s: {', '.join(names)}"
        )

    def save_stopped(self, position: "Position", record: dict[str, Any]) -> Path:
        """Save where the run stands."""
        from ldm.tasks.latents import stopped_file

        return self._stops.save(stopped_file(position, record | self._given()))

    def _given(self) -> dict[str, Any]:
        """Return the command line, and the folder that it was given in."""
        return {"command": self.command, "folder": os.getcwd()}

    def _keep_latents(self, picture: Path, batch: "Batch", position: int, record: dict[str, Any]) -> None:
        from ldm.checkpoint.whole_file import replace_file
        from ldm.tasks.latents import final_file

        height, width = batch.images.shape[-2:]
        about = {"width": width, "height": height, "pictures_in_batch": len(batch.images)}
        data = final_file(batch.latents[position], record | about | self._given())
        replace_file(latents_name(picture), lambda path: path.write_bytes(data))

    def _write(
        self, files: NumberedFiles, image: "np.ndarray", record: dict[str, Any], paste: "Paste | None" = None
    ) -> Path:
        from PIL import Image

        from ldm.imaging import metadata

        height, width = image.shape[:2]
        image, mark = self._marked(image, paste)
        record = record | {"width": width, "height": height, "watermark": mark}
        buffer = io.BytesIO()
        Image.fromarray(image).save(
            buffer, "PNG", pnginfo=metadata.png_chunks(record) if self.metadata else None
        )
        return files.save(buffer.getvalue())

    def _marked(
        self, image: "np.ndarray", paste: "Paste | None" = None
    ) -> tuple["np.ndarray", str | None]:
        """Return the picture with its watermark, only where it was painted, and what to remember of it."""
        from ldm.imaging import watermark
        from ldm.imaging.paste import opaque

        fits = self.watermark and watermark.fits(image)
        if fits:
            image = watermark.mark(image)
        if paste is not None:
            image = paste.onto(image)
        if not fits:
            if self.watermark:
                self._say(
                    logging.INFO,
                    "pictures under %d pixels cannot carry the watermark and are saved without it",
                    watermark.MIN_PIXELS,
                )
            return image, None
        if watermark.carries(opaque(image)):
            return image, watermark.PAYLOAD.decode()
        if paste is None:
            self._say(
                logging.WARNING,
                "the watermark cannot be read back from a picture: its colours do not hold it",
            )
        return image, f"{watermark.PAYLOAD.decode()} (unreadable)"

    def _say(self, level: int, *message: Any) -> None:
        """Log what is so of many pictures once."""
        if message not in self._said:
            log.log(level, *message)
        self._said.add(message)


def save_all(pictures: Pictures, batches: Iterable["Batch"], describe: Callable[[], dict[str, Any]]) -> None:
    """Save every batch as it comes, then the grid, and say where they are; also after Ctrl-C or an error.

    Args:
        describe: gives the run's record; asked once, when the first pictures are there, because it waits for
            the digest of the weights.

    Raises:
        BadPictureError: last, if a picture came out black or NaN and was left out.
        Stopped: the user asked for it; where the run stands is saved.
    """
    record: dict[str, Any] = {}
    try:
        with heeding_signals():
            for batch in batches:
                record = record or describe()
                pictures.save(batch, record)
            pictures.save_grid(record)
    except Stopped as stopped:
        path = pictures.save_stopped(stopped.position, record or describe())
        if pictures.saved:
            log.info(pictures.summary())
        raise Stopped(f"{stopped}; to go on exactly: {_again(path)}") from None
    except BaseException:
        if pictures.saved:
            log.warning("stopped early, kept %s", pictures.summary())
        raise
    if pictures.saved:
        log.info(pictures.summary())
    pictures.check()


def _again(path: Path) -> str:
    """Return the command line that goes on with a stopped run."""
    program = Path(sys.argv[0])
    words = ["python", str(program)] if program.suffix == ".py" else [program.name]
    return shlex.join([*words, "--latents", str(path)])


def sampling_arguments(args: argparse.Namespace, opened: OpenedModel, sampler: str) -> dict[str, Any]:
    """Return the arguments that every task takes: seed, counts, settings, progress bar."""
    from ldm.tasks.sampling import Settings

    _warn_without_guidance(args)
    return {
        "seed": args.seed,
        "batch_size": args.n_samples,
        "n_iter": args.n_iter,
        "settings": Settings(
            sampler=sampler,
            num_steps=args.steps,
            spacing=chosen_spacing(args, sampler),
            eta=chosen_eta(args),
            zero_snr=args.zero_snr,
            guidance_scale=args.scale,
            negative_prompt=args.negative_prompt,
            prompt_syntax=args.prompt_syntax,
            clip_skip=args.clip_skip,
            long_prompts=args.long_prompts,
            guidance_rescale=args.guidance_rescale,
            guidance_interval=args.guidance_interval,
            dynamic_threshold=args.dynamic_threshold,
            rng=args.rng,
            exact=args.exact,
            dtype=opened.dtype,
        ),
        "fixed_code": args.fixed_code,
        "track": watched(args, opened, sampler),
    }


def _warn_without_guidance(args: argparse.Namespace) -> None:
    """Name the flags that change guidance when there is none to change."""
    for name in ("negative_prompt", "guidance_rescale", "guidance_interval"):
        if getattr(args, name) and args.scale == 1:
            flag = name.replace("_", "-")
            log.warning("--%s has no effect at --scale 1, which leaves out the unconditional pass", flag)


def run_record(
    args: argparse.Namespace, opened: OpenedModel, task: str, sampler: str, **settings: Any
) -> dict[str, Any]:
    """Return what every picture of a run remembers; `settings` are those of the task."""
    import torch

    from ldm.samplers import find_sampler

    eta = chosen_eta(args)
    return {
        "version": ldm.__version__,
        "task": task,
        "negative_prompt": args.negative_prompt,
        **{name: getattr(args, name) for name, usual in PROMPTS.items() if getattr(args, name) != usual},
        "seed": args.seed,
        "rng": args.rng,
        **({"exact": True} if args.exact else {}),
        "steps": args.steps,
        "sampler": sampler,
        "schedule": chosen_spacing(args, sampler) or "published",
        "eta": find_sampler(sampler).cls.default_eta if eta is None else eta,
        **({"zero_snr": True} if args.zero_snr else {}),
        "guidance_scale": args.scale,
        **{name: getattr(args, name) for name in GUIDANCE if getattr(args, name)},
        "batch_size": args.n_samples,
        "model": opened.record(),
        "device": str(opened.model.device),
        "dtype": str(opened.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "flags": {name: value for name, value in vars(args).items() if name not in NOT_RECORDED},
        **settings,
    }
