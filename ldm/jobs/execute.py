"""Carry out a request from a command line, a work list, a web page or another program.

    execute(Txt2Img(prompt="a lighthouse", ckpt="v2-1_512-ema-pruned.ckpt"))        saves images
    for batch in generate(model, Txt2Img(prompts=["a lighthouse"])): ...            saves nothing
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.errors import Stopped
from ldm.jobs import vocabulary
from ldm.jobs.controls import ControlNets, check_families, control_files, steers
from ldm.jobs.inputs import load_inputs
from ldm.jobs.opening import Models, OpenedModel, facts_of, hint_at_size
from ldm.jobs.record import run_record
from ldm.jobs.resume import Resumed, batches_left, command_to_resume, decoded_record
from ldm.jobs.saving import Saving
from ldm.jobs.watch import SILENT, Watch
from ldm.requests import Request
from ldm.requests.groups import Size
from ldm.requests.resolving import resolved
from ldm.signals import doing, heeding_signals, stop_asked
from ldm.wording import counted

if TYPE_CHECKING:
    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.samplers.loop import Step
    from ldm.tasks.batch import Batch
    from ldm.tasks.latents import Position

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """The result of a request: the images and the grid that were written, and what they record."""

    request: Request
    files: list[Path]
    record: dict[str, Any]


def generate(
    model: "LatentDiffusion",
    request: Request,
    track: "Callable[[Iterator[Step], int], Iterable[Step]] | None" = None,
    resume: "Position | None" = None,
) -> "Iterator[Batch]":
    """Generate the images of a request with a loaded model, without saving them.

    The request itself is checked at the call, and against the model when the first batch is generated.

    Args:
        model: from `ldm.load_model`; the request's own options of the model are ignored.
        track: wraps the iterator over the steps of a batch, given its length, for a progress bar or a
            preview. If it ends before the steps do, sampling stops there (`StoppedAt`).
        resume: where to resume an interrupted run.

    Raises:
        InputError: the request is invalid, or does not suit the model.
    """
    from ldm.tasks.generate import generate as run

    loaded = load_inputs(request)
    controls = ControlNets().open(control_files(request), model, "the model", request.allow_nonfinite)
    return run(model, resolved(loaded, facts_of(model)), track, resume, steers=steers(loaded, controls))


def execute(
    request: Request, models: Models | None = None, watch: Watch = SILENT, resume: Resumed | None = None
) -> Done:
    """Read the files of a request, open its model, generate its images, and save and record them.

    Args:
        models: keeps models open between requests.
        watch: shows progress and may stop the run.
        resume: the run or image that the request continues, see `ldm.jobs.resume.resumed`.

    Raises:
        LdmError: the request, its files or the model are invalid; nothing was written.
        BadImageError: an image came out black or NaN and was left out; all others are saved.
        Stopped: the user stopped the run; its state is saved.
    """
    if not _decodes(resume):
        check_families(request)
    saving = Saving(request)
    loaded = load_inputs(replace(request, prompts=_prompts(request, resume)), steered=not _decodes(resume))
    if resume is not None:
        resume.check(loaded)
    opened = (models or Models()).open(request, watch, any_kind=_decodes(resume))
    if resume is not None:
        resume.check_model(opened)
    saving.trained_side = 0 if opened.is_demo else opened.facts.native_size
    skip = _skipped(request, loaded, opened, saving)
    batches = _batches(loaded, opened, watch, resume, saving, skip)
    total = batches_left(loaded, resume, skip)
    try:
        with heeding_signals("the preparations"):  # also while the state of a stopped run is saved
            try:
                for batch in watch.batches(batches, total):
                    if not saving.run:  # not before: the record waits for the digest of the weights
                        saving.run = _record(request, loaded, opened, resume)
                    saving.add(batch)
            except Stopped as stopped:
                saving.run = saving.run or _record(request, loaded, opened, resume)
                path = saving.save_stopped(stopped.position)
                command = command_to_resume(path, request)
                raise Stopped(f"{stopped}; to resume: {command}") from None
            saving.save_grid()
    except Stopped:
        if saving.saved:
            log.info(saving.summary())
        raise
    except BaseException:
        if saving.saved:
            log.warning("stopped early, kept %s", saving.summary())
        raise
    if saving.saved:
        log.info(saving.summary())
    saving.check()
    return Done(request, saving.saved, saving.run)


def _decodes(resume: Resumed | None) -> bool:
    """Return whether only the latents of a finished image are decoded."""
    return resume is not None and resume.is_finished


def _prompts(request: Request, resume: Resumed | None) -> tuple[str, ...]:
    """Return the prompts of the run that is resumed; its prompt file may have changed since."""
    if resume is None:
        return request.prompts
    file = resume.file
    return (file.record["prompt"],) if resume.is_finished else tuple(file.position.prompts)


def _skipped(request: Request, loaded: Request, opened: OpenedModel, saving: Saving) -> set[int]:
    """Return the batches that --skip-existing leaves out, and tell `saving` which images are there."""
    if not request.skip_existing:
        return set()
    from ldm.jobs.existing import complete_batches, existing

    asked = resolved(loaded, opened.facts)
    saving.existing = existing(saving.outdir / "samples", run_record(request, asked, opened), asked)
    if saving.existing:
        there = counted(len(saving.existing), "image")
        log.info("%s of this command had been saved before: not made again", there)
    return complete_batches(saving.existing, asked)


def _batches(
    loaded: Request,
    opened: OpenedModel,
    watch: Watch,
    resume: Resumed | None,
    saving: Saving,
    skip: set[int],
) -> "Iterator[Batch]":
    from ldm.tasks.decode import decode_latents
    from ldm.tasks.generate import generate as run

    if _decodes(resume):
        return decode_latents(opened.model, resume.file, opened.dtype)
    request = resolved(loaded, opened.facts)
    _log_hints(request, opened)
    track = _track(request, opened, watch, saving.outdir)
    position = None if resume is None else resume.file.position
    controls = steers(request, opened.controls)
    return run(opened.model, request, track, position, opened.dtype, skip, controls)


def _record(request: Request, loaded: Request, opened: OpenedModel, resume: Resumed | None) -> dict[str, Any]:
    if _decodes(resume):
        return decoded_record(resume.file, opened)
    return run_record(request, resolved(loaded, opened.facts), opened)


def _log_hints(request: Request, opened: OpenedModel) -> None:
    """Log an unusual size, words that the model does not know, and options without effect."""
    if isinstance(request, Size):
        hint_at_size(request, opened)
    if opened.model.knows:
        hint = vocabulary.advice(request.prompts, opened.config.parent / opened.model.knows)
        if hint:
            log.info("%s", hint)
    for name in ("negative_prompt", "guidance_rescale", "guidance_interval"):
        if getattr(request, name) and request.scale == 1:
            flag = name.replace("_", "-")
            log.warning("--%s has no effect at --scale 1, which skips the unconditional prediction", flag)


def _track(
    request: Request, opened: OpenedModel, watch: Watch, outdir: Path
) -> "Callable[[Iterable[Step], int], Iterator[Step]]":
    """Return the function that shows the steps of a batch, writes previews, and ends after a stop request."""
    from ldm.jobs.preview import Preview

    every = request.preview_every
    columns = request.n_rows or request.n_samples
    preview = Preview(outdir / "preview.png", columns, opened) if every else None

    def asked() -> bool:
        return stop_asked() or watch.stop_asked()

    def track(steps: "Iterable[Step]", total: int) -> "Iterator[Step]":
        if asked():
            return
        doing(f"step 1 of {total}")
        for taken, step in enumerate(watch.steps(steps, total, request.sampler), start=1):
            if preview is not None and taken % every == 0:
                preview.show(step)
            yield step
            if asked():
                return
            doing(f"step {taken + 1} of {total}" if taken < total else "the images of this batch")

    return track
