"""What every script that makes pictures does, in this order: refuse, load, make, save.

    run = Run(args)                             all that can be refused without the model is refused here
    image, about = inputs.read_init(args, run.start)
    model = run.open()
    run.save(img2img(model, image, run.prompts, **run.arguments()), **about)
"""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ldm.cli import inputs, latents
from ldm.cli.model import OpenedModel, check_factor, open_model
from ldm.cli.pictures import Pictures, run_record, sampling_arguments, save_all
from ldm.cli.progress import batch_bar

if TYPE_CHECKING:
    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.tasks.sampling import Batch


class Run:
    """One run of a script whose flags are those of `options.prompt`, `sampling`, ... `output`.

    Attributes:
        start: what --latents gives.
        prompts: of all pictures of one iteration.
        opened: the model, from `open` on.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.start = latents.read_start(args)
        self.prompts = self.start.prompts or inputs.read_prompts(args)
        self.sampler = inputs.chosen_sampler(args)
        self.pictures = Pictures(args)
        self.opened: OpenedModel | None = None
        inputs.check_seeds(args, self.prompts)

    def open(self) -> "LatentDiffusion":
        """Load the model and return it."""
        self.opened = open_model(self.args)
        self.start.check_model(self.opened)
        check_factor(self.args, self.opened)
        return self.opened.model

    def arguments(self) -> dict[str, Any]:
        """Return what every task takes: seed, counts, settings, progress bar, where to go on."""
        return sampling_arguments(self.args, self.opened, self.sampler) | {"resume": self.start.position}

    def save(self, batches: Iterable["Batch"], **about: Any) -> None:
        """Make and save the pictures, which remember `about`: what they were made of, and how."""
        total = self.start.batches_left(self.prompts, self.args)
        save_all(self.pictures, batch_bar(batches, total, self.args), lambda: self._record(about))

    def _record(self, about: dict[str, Any]) -> dict[str, Any]:
        if self.start.finished is not None:  # decoded again: what was, stays
            return latents.picture_record(self.start.finished, self.opened)
        return run_record(self.args, self.opened, self.args.task, self.sampler, **about)
