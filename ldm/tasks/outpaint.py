"""Outpainting: extend an image at its sides; the image itself stays as it is, byte for byte.

The new part is painted in windows of about the model's own size (`ldm.imaging.canvas`), each of which sees
known pixels: those of the image, or painted before. In a window the new part is first filled by spreading
what is known (`ldm.imaging.pull_push`), so that any model begins with the colours around it, noised by
`strength`; then it is inpainted (`ldm.tasks.inpaint`), and its colours are matched at the border.

The noise of window k is that of inpainting at a stage of its own, `stage_of(k)`. If a run is interrupted, the
canvas is saved with it.
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
from ldm.imaging.paste import Paste
from ldm.imaging.pull_push import RING, match_border, pull_push
from ldm.requests import Outpaint
from ldm.tasks.batch import Batch
from ldm.tasks.inpaint import check_alpha, check_inpainting, inpainter_of
from ldm.tasks.inputs import no_latents, read_images
from ldm.tasks.latents import StoppedAt, restore_noise
from ldm.tasks.run import BatchRun, Run, Task
from ldm.tasks.steering import View
from ldm.wording import counted

logger = logging.getLogger(__name__)


def outpaint(run: Run, request: Outpaint) -> Iterator[Batch]:
    """Extend `request.init_img` by so many pixels at each side.

    The model sees transparency on white, and what is painted is opaque. Strength 0 keeps the fill (but for
    the autoencoder), 1 leaves of it what the noise of the first step does.
    """
    image = request.init_img.values
    margins = Margins(request.left, request.right, request.up, request.down)
    outpainter = Outpainter(run, image, request.init_img.about, margins)
    count, side = len(outpainter.windows), request.window
    in_windows = counted(count, "window") + (f" of at most {side}x{side}" if count > 1 else "")
    (height, width), (tall, wide) = image.shape[:2], outpainter.paste.weight.shape
    logger.info("outpainting %dx%d to %dx%d in %s", width, height, wide, tall, in_windows)
    steps = run.steps_of(request.strength)
    for batch in run.each(run.frame(*outpainter.windows[0].new.shape), steps):
        first, images = outpainter.begin(batch)
        for k in range(first, count):
            try:
                images, latents = outpainter.paint(batch, k, images)
            except StoppedAt as stopped:
                raise StoppedAt(replace(stopped.position, made={"canvas": images})) from None
        yield batch.done(latents, images, outpainter.paste)


def stage_of(k: int) -> int:
    """Return the stage of the noise of window k: never 1, whose start noise is that of 0 in `gpu-philox`."""
    return k + (k > 0)


@dataclass(frozen=True)
class OutpaintWindow:
    """What the model sees of the canvas; takes the place of inpainting's Region."""

    image: Tensor  # (n, 3, h, w)
    new: Tensor  # (h, w) bool
    frame: Frame
    factor: int  # pixels a latent

    def pixels(self) -> Tensor:
        """Return the images with the new part filled by what is known, (n, 3, h, w)."""
        return pull_push(self.image, ~self.new[None, None])

    def shown_mask(self) -> Tensor:
        """Return the mask (1, 1, h, w), 1 where to paint: every latent that stands for any new pixel."""
        cells = F.max_pool2d(self.frame.pad(self.new[None, None].float()), self.factor)
        return self.frame.crop(F.interpolate(cells, scale_factor=self.factor))

    def finished(self, painted: Tensor) -> Tensor:
        """Return the images (b, 3, h, w) with the new part painted, its colours matched at the border."""
        distance = torch.from_numpy(masks.distance(~self.new.numpy(), RING))
        matched = match_border(painted, self.image, distance)
        return canvas.joined(matched, self.image, self.new).clamp(-1, 1)


class Outpainter:
    """Paints the windows of every batch, one after the other.

    Raises: InputError for sides or a window that cannot be.
    """

    def __init__(self, run: Run, image: np.ndarray, profile: bytes | None, margins: Margins) -> None:
        self.run = run
        self.windows: list[Window] = list(canvas.windows(*image.shape[:2], margins, run.request.window))
        size = margins.canvas(*image.shape[:2])
        self.margins, self.inner = margins, margins.inner(*image.shape[:2])
        blank = np.zeros((*size, image.shape[2]), np.uint8)
        self.paste = Paste(blank, np.ones(size, np.float32), profile)
        self.paste.original[self.inner.part] = image
        self.paste.weight[self.inner.part] = 0

    def begin(self, batch: BatchRun) -> tuple[int, Tensor]:
        """Return the first window to paint, and the canvas before it (1 or b, 3, H, W)."""
        resume = self.run.resume
        if resume is None or resume.first != batch.part.first:
            images = from_uint8(self.paste.seen)
            rows, columns = self.inner.part
            images[..., rows, columns] = canvas.without_rim(images[..., rows, columns], self.margins)
            return 0, images
        stages = [stage_of(k) for k in range(len(self.windows))]
        images = resume.made.get("canvas")
        expected = self.paste.weight.shape
        if resume.stage not in stages or images is None or images.shape[-2:] != expected:
            raise InputError(
                "cannot resume: the canvas that was saved does not fit; give the options of the run that was "
                "interrupted"
            )
        restore_noise(resume, self.run.noise)  # what was drawn once a run, before the sampler asks
        return stages.index(resume.stage), images

    def paint(self, batch: BatchRun, k: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the canvas (b, 3, H, W) with the new part of window k painted, and the window's latents."""
        window = self.windows[k]
        rows, columns = window.box.part
        frame = self.run.frame(*window.new.shape)
        new = torch.from_numpy(window.new)
        shown = OutpaintWindow(images[..., rows, columns], new, frame, self.run.model.downsampling_factor)
        view = View(*self.paste.weight.shape, window.box)
        part = batch.again(frame, stage_of(k), batch.steps, view=view)
        latents = inpainter_of(self.run, frame, shown, from_image=True).paint(part)
        result = images.expand(len(batch.prompts), -1, -1, -1).clone()
        result[..., rows, columns] = shown.finished(part.decode(latents))
        return result, latents


def load(request: Outpaint) -> Outpaint:
    """Return the request with its image read. Raises: InputError."""
    no_latents(request)
    request = read_images(request, alpha=True)
    check_alpha(request.init_img, request)
    margins = Margins(request.left, request.right, request.up, request.down)
    if not any(margins):
        raise InputError("nothing to add: give --left, --right, --up or --down PIXELS")
    margins.canvas(*request.init_img.values.shape[:2])
    return request


TASK = Task(outpaint, ("crossattn", "hybrid"), check_inpainting, load)
