"""Make a picture larger at its sides: what is added is painted, the picture itself stays byte for byte.

The new part is painted in windows of about the model's own size (`ldm.imaging.canvas`), each of which sees
known pixels, the picture's or painted before. In a window the new part is first filled by spreading what is
known (`ldm.imaging.pull_push`), so that any model begins with the colours around it, noised by `strength`;
then it is inpainted (`ldm.tasks.inpaint`), and its colours are matched at the border.

Draws of window k are those of inpainting at a stage of their own, `stage_of(k)`. Where a run is stopped, the
canvas is kept with it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging import canvas, masks
from ldm.imaging.canvas import Margins, Window
from ldm.imaging.colour import from_uint8
from ldm.imaging.padding import Frame
from ldm.imaging.paste import Paste, opaque
from ldm.imaging.pull_push import RING, match_border, pull_push
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.latent_inpaint import LatentInpaintDiffusion
from ldm.tasks.draws import BatchDraws, Draws, make_draws
from ldm.tasks.inpaint import KeepsLatents, Painter, SeesMask
from ldm.tasks.latents import Position, StoppedAt, restore_draws
from ldm.tasks.sampling import Batch, Diffuser, Part, Settings, Track

logger = logging.getLogger(__name__)


def outpaint(
    model: LatentDiffusion,
    image: np.ndarray,
    prompts: list[str],
    *,
    seed: int,
    left: int = 0,
    right: int = 0,
    up: int = 0,
    down: int = 0,
    window: int | None = None,
    strength: float = 1.0,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
    resume: Position | None = None,
) -> Iterator[Batch]:
    """Grow `image` (h, w, 3 or 4) uint8 by so many pixels at each side.

    Transparency is shown to the model on white, and what is painted is opaque.

    Args:
        window: the largest side, in pixels, of what the model sees at once; None is what it says it was
            trained at.
        strength: 0 keeps the fill (but for the autoencoder), 1 leaves of it what the noise of the first step
            does.
        resume: go on from here, exactly, to the end of the run.

    Raises: InputError for sides or a window that cannot be, a strength outside 0..1, or settings that the
        sampler or the model cannot honour.
    """
    settings = settings or Settings()
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}; expected 0 (keep the fill) to 1 (paint it anew)")
    margins = Margins(left, right, up, down)
    height, width = image.shape[:2]
    side = window or model.image_size * model.downsampling_factor
    windows = list(canvas.windows(height, width, margins, side))
    sees_mask = isinstance(model, LatentInpaintDiffusion)
    accepts = ("crossattn", "hybrid") if sees_mask else ("crossattn",)
    diffuser = Diffuser(model, settings, batch_size, track, resume, accepts)
    t_enc = diffuser.t_enc(strength)
    grower = Grower(diffuser, SeesMask if sees_mask else KeepsLatents, image, margins, windows, t_enc)
    tall, wide = margins.canvas(height, width)
    count = "1 window" if len(windows) == 1 else f"{len(windows)} windows of at most {side}x{side}"
    logger.info("outpainting %dx%d to %dx%d in %s", width, height, wide, tall, count)
    pictures = n_iter * len(prompts)
    draws = make_draws(settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code)
    return grower.generate(draws, prompts, n_iter)


def stage_of(k: int) -> int:
    """Return the stage of the draws of window k: never 1, whose start noise is that of 0 in `gpu-philox`."""
    return k + (k > 0)


@dataclass(frozen=True)
class View:
    """What the painter of a window sees of the canvas; stands where inpainting has its Scene."""

    image: Tensor  # (n, 3, h, w)
    new: Tensor  # (h, w) bool
    frame: Frame
    factor: int  # pixels a latent

    def pixels(self) -> Tensor:
        """Return the pictures with the new part filled by what is known, (n, 3, h, w)."""
        return pull_push(self.image, ~self.new[None, None])

    def seen(self) -> Tensor:
        """Return the mask (1, 1, h, w), 1 where to paint: every latent that stands for any new pixel."""
        cells = F.max_pool2d(self.frame.pad(self.new[None, None].float()), self.factor)
        return self.frame.crop(F.interpolate(cells, scale_factor=self.factor))

    def finished(self, painted: Tensor) -> Tensor:
        """Return the pictures (b, 3, h, w) with the new part painted, its colours matched at the border."""
        distance = torch.from_numpy(masks.distance(~self.new.numpy(), RING))
        matched = match_border(painted, self.image, distance)
        return canvas.joined(matched, self.image, self.new).clamp(-1, 1)


class Grower:
    """Paints the windows of every batch, one after the other."""

    def __init__(
        self,
        diffuser: Diffuser,
        painter: type[Painter],
        image: np.ndarray,
        margins: Margins,
        windows: list[Window],
        t_enc: int,
    ) -> None:
        self.diffuser = diffuser
        self.painter = painter
        self.windows = windows
        self.t_enc = t_enc
        size = margins.canvas(*image.shape[:2])
        inner = margins.inner(*image.shape[:2])
        self.paste = Paste(np.zeros((*size, image.shape[2]), np.uint8), np.ones(size, np.float32))
        self.paste.original[inner.part] = image
        self.paste.weight[inner.part] = 0

    def generate(self, draws: Draws, prompts: list[str], n_iter: int) -> Iterator[Batch]:
        """Yield the batches of a run."""
        for part in self.diffuser.batches(prompts, n_iter):
            first, images = self.begun(part, draws)
            for k in range(first, len(self.windows)):
                noise = draws.batch(part.first, len(part.prompts), self.start, stage_of(k))
                try:
                    images, latents = self.painted(self.windows[k], images, part.prompts, noise)
                except StoppedAt as stopped:
                    raise StoppedAt(replace(stopped.position, made={"canvas": images})) from None
            yield self.diffuser.batch(part, noise, latents, images, self.paste)

    @property
    def start(self) -> int:
        return self.diffuser.sampler.start_index(self.t_enc)

    def begun(self, part: Part, draws: Draws) -> tuple[int, Tensor]:
        """Return the window to begin with, and the canvas before it (1 or b, 3, H, W)."""
        resume = self.diffuser.resume
        if resume is None or resume.first != part.first:
            return 0, from_uint8(opaque(self.paste.original))
        stages = [stage_of(k) for k in range(len(self.windows))]
        images = resume.made.get("canvas")
        expected = self.paste.weight.shape
        if resume.stage not in stages or images is None or images.shape[-2:] != expected:
            raise InputError(
                "cannot go on: the canvas that was saved does not fit; give the flags of the run that was "
                "stopped"
            )
        restore_draws(resume, draws)  # what was drawn once a run, before the sampler asks
        return stages.index(resume.stage), images

    def painted(
        self, window: Window, images: Tensor, prompts: list[str], noise: BatchDraws
    ) -> tuple[Tensor, Tensor]:
        """Return the canvas (b, 3, H, W) with a window's new part painted, and the window's latents."""
        rows, columns = window.box.part
        model = self.diffuser.model
        frame = Frame.around(*window.new.shape, model.size_multiple)
        new = torch.from_numpy(window.new)
        view = View(images[..., rows, columns], new, frame, model.downsampling_factor)
        painter = self.painter(self.diffuser, frame, view, self.t_enc)
        painter.look()
        latents = painter.paint(prompts, noise)
        result = images.expand(len(prompts), -1, -1, -1).clone()
        result[..., rows, columns] = view.finished(self.diffuser.decode(latents, frame))
        return result, latents
