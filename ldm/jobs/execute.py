"""Carry out a request, whoever asks: a command line, a line of a work list, a page, another program.

    execute(Txt2Img(prompt="a lighthouse", ckpt="v2-1_512-ema-pruned.ckpt"))        saves images
    for batch in generate(model, Txt2Img(prompts=["a lighthouse"])): ...            saves nothing
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import Stopped
from ldm.jobs.inputs import load_inputs
from ldm.jobs.opening import Models, OpenedModel, facts_of, hint_at_size
from ldm.jobs.record import run_record
from ldm.jobs.resume import Resumed, batches_left, command_to_resume, decoded_record
from ldm.jobs.saving import Saving
from ldm.jobs.signals import heeding_signals, stop_asked
from ldm.jobs.watch import SILENT, Watch
from ldm.requests import Request
from ldm.requests.groups import Size
from ldm.requests.resolving import resolved

if TYPE_CHECKING:
    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.samplers.loop import Step
    from ldm.tasks.batch import Batch
    from ldm.tasks.latents import Position

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """What came of a request: the files that were written, the grid and depth maps not among the images."""

    request: Request
    files: list[Path]
    record: dict[str, Any]


def generate(
    model: "LatentDiffusion",
    request: Request,
    track: "Callable[[Iterator[Step], int], Iterable[Step]] | None" = None,
    resume: "Position | None" = None,
) -> "Iterator[Batch]":
    """Make the images of a request with a model that is open; nothing is saved.

    What the request alone can be refused for is refused at the call, what the model adds at the first batch.

    Args:
        model: as `ldm.load_model` returns it; the request's own options for the model are not read.
        track: wraps the iterator of the steps of a batch, of known length: a progress bar, a preview. If it
            ends before the steps do, sampling stops there (`StoppedAt`).
        resume: resume an interrupted run here.

    Raises: InputError.
    """
    from ldm.tasks.generate import generate as run

    return run(model, resolved(load_inputs(request), facts_of(model)), track, resume)


def execute(
    request: Request,
    models: Models | None = None,
    watch: Watch = SILENT,
    resume: Resumed | None = None,
) -> Done:
    """Read the files of a request, open its model, make its images, and save and record them.

    Args:
        models: keeps models open between requests.
        resume: what the request continues, see `ldm.jobs.resume.resumed`.

    Raises:
        LdmError: something is wrong with the request, its files or the model; nothing was written.
        BadImageError: last, if an image came out black or NaN and was left out.
        Stopped: the user asked for it; the state of the run is saved.
    """
    saving = Saving(request)
    loaded = load_inputs(replace(request, prompts=_prompts(request, resume)))
    if resume is not None:
        resume.check(loaded)
    opened = (models or Models()).open(request, watch)
    if resume is not None:
        resume.check_model(opened)
    batches = _batches(loaded, opened, watch, resume, saving)
    total = batches_left(loaded, resume)
    try:
        with heeding_signals():
            for batch in watch.batches(batches, total):
                if not saving.run:  # it waits for the digest of the weights
                    saving.run = _record(request, loaded, opened, resume)
                saving.add(batch)
            saving.save_grid()
    except Stopped as stopped:
        saving.run = saving.run or _record(request, loaded, opened, resume)
        path = saving.save_stopped(stopped.position)
        if saving.saved:
            log.info(saving.summary())
        raise Stopped(f"{stopped}; to resume: {command_to_resume(path, request)}") from None
    except BaseException:
        if saving.saved:
            log.warning("stopped early, kept %s", saving.summary())
        raise
    if saving.saved:
        log.info(saving.summary())
    saving.check()
    return Done(request, saving.saved, saving.run)


def _prompts(request: Request, resume: Resumed | None) -> tuple[str, ...]:
    """Return the prompts of the run that is resumed, which its files may no longer contain."""
    if resume is None:
        return request.prompts
    file = resume.file
    return (file.record["prompt"],) if resume.is_finished else tuple(file.position.prompts)


def _batches(
    loaded: Request, opened: OpenedModel, watch: Watch, resume: Resumed | None, saving: Saving
) -> "Iterator[Batch]":
    from ldm.tasks.decode import decode_latents
    from ldm.tasks.generate import generate as run

    if resume is not None and resume.is_finished:
        return decode_latents(opened.model, resume.file, opened.dtype)
    request = resolved(loaded, opened.facts)
    _say_what_is_odd(request, opened)
    track = _track(request, opened, watch, saving.outdir)
    return run(opened.model, request, track, None if resume is None else resume.file.position, opened.dtype)


def _record(
    request: Request, loaded: Request, opened: OpenedModel, resume: Resumed | None
) -> dict[str, Any]:
    if resume is not None and resume.is_finished:
        return decoded_record(resume.file, opened)
    return run_record(request, resolved(loaded, opened.facts), opened)


def _say_what_is_odd(request: Request, opened: OpenedModel) -> None:
    """Log a size far from what the model was trained at, and options that have no effect."""
    if isinstance(request, Size):
        hint_at_size(request, opened)
    for name in ("negative_prompt", "guidance_rescale", "guidance_interval"):
        if getattr(request, name) and request.scale == 1:
            flag = name.replace("_", "-")
            log.warning("--%s has no effect at --scale 1, which leaves out the unconditional pass", flag)


def _track(
    request: Request, opened: OpenedModel, watch: Watch, outdir: Path
) -> "Callable[[Iterable[Step], int], Iterator[Step]]":
    """Return what watches the steps of a batch, writes previews, and ends them where a stop is asked for."""
    from ldm.jobs.preview import Preview

    every = request.preview_every
    columns = request.n_rows or request.n_samples
    preview = Preview(outdir / "preview.png", columns, opened) if every else None

    def asked() -> bool:
        return stop_asked() or watch.stop_asked()

    def track(steps: "Iterable[Step]", total: int) -> "Iterator[Step]":
        if asked():
            return
        for taken, step in enumerate(watch.steps(steps, total, request.sampler), start=1):
            if preview is not None and taken % every == 0:
                preview.show(step)
            yield step
            if asked():
                return

    return track
