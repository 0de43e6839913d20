"""Inpainting: repaint a part of an image, as a prompt says, and leave the rest as it is, byte for byte.

Two kinds of model can:

    made for it (LatentInpaintDiffusion)   sees the mask and what is left of the image, as concat
    any text-to-image model                latent masking: before every step what is outside the mask is put
                                           back, at that step's noise (arXiv 2201.09865, equation 8, without
                                           its resampling)

The model sees a mask of yes and no, at the size of the latents. The image itself takes what was repainted by
the mask's own pixels and greys, after the colours at its border were matched (`ldm.imaging.pull_push`); `raw`
outputs the decoded image as it is, as the reference does.

Noise is drawn in this order: the posterior of what is left of the image, or of the image for latent masking;
that of the image, for a model of the first kind that starts from it (strength below 1); the start noise; then
for every step that of what is put back, and the sampler's own.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging import masks
from ldm.imaging.colour import from_uint8
from ldm.imaging.files import open_image, quietly
from ldm.imaging.masks import Box
from ldm.imaging.padding import Frame
from ldm.imaging.paste import Paste, opaque
from ldm.imaging.profiles import to_srgb
from ldm.imaging.pull_push import RING, match_border
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.latent_inpaint import LatentInpaintDiffusion
from ldm.requests import Inpaint, Request
from ldm.requests.loaded import InputArray
from ldm.tasks.batch import Batch
from ldm.tasks.inputs import file_sha256, no_latents, of_array, read_images
from ldm.tasks.run import BatchRun, Keep, Run, Task, check_key
from ldm.tasks.steering import View

LARGE, SMALL = 2.0, 0.2  # images of so many of the model's, boxes of so little of the image
MISSED = 0.5  # of the masked pixels: a warning if the model is to keep more

logger = logging.getLogger(__name__)


def inpaint(run: Run, request: Inpaint) -> Iterator[Batch]:
    """Repaint `request.init_img` where `request.mask` is 1, in exactly its size and channels.

    The model sees transparency on white, and what is repainted is opaque. Strength 0 keeps what is in the
    mask (but for the autoencoder), 1 begins with pure noise.
    """
    image, profile, size = request.init_img.values, request.init_img.about, run.model.training_size
    mask = masks.prepared(request.mask.values, invert=request.invert_mask, grow=request.mask_grow)
    region = Region.of(opaque(to_srgb(image, profile)), mask, request.only_masked, size)
    region.log(size)
    paste = None if request.raw else Paste(image, masks.feather(mask, request.mask_blur), profile)
    matched = not (request.raw or request.no_match_border)
    frame = run.frame(*region.size)
    steps = run.steps_of(request.strength) if request.strength < 1 else None
    painter = inpainter_of(run, frame, region, steps is not None)
    view = View(*mask.shape, region.box)
    for batch in run.each(frame, steps, view):
        latents = painter.paint(batch)
        yield batch.done(latents, region.finished(batch.decode(latents), matched), paste)


def check_inpainting(model: LatentDiffusion) -> None:
    """Raise InputError where a model is neither made for inpainting nor a text-to-image model."""
    check_key(model, ("crossattn", "hybrid") if isinstance(model, LatentInpaintDiffusion) else ("crossattn",))


@dataclass(frozen=True)
class Region:
    """An image and its mask, the part of them that the model works on, and the way back.

    Args:
        image: (H, W, 3) uint8, as the model sees it.
        mask: (H, W) float32.
        box: the part of both that the model sees.
        size: (h, w) at which the model sees it.
    """

    image: np.ndarray
    mask: np.ndarray
    box: Box
    size: tuple[int, int]

    @classmethod
    def of(cls, image: np.ndarray, mask: np.ndarray, only_masked: int | None, model_size: int) -> "Region":
        height, width = mask.shape
        if only_masked is None:
            return cls(image, mask, Box(0, 0, height, width), (height, width))
        box = masks.squarer(masks.box(mask, only_masked), height, width)
        scale = model_size / (box.height * box.width) ** 0.5
        return cls(image, mask, box, (max(round(box.height * scale), 1), max(round(box.width * scale), 1)))

    def log(self, model_size: int) -> None:
        """Log what a user may not expect."""
        hard = masks.binarize(self.mask)
        if hard.all():
            shade = "white" if float(self.mask.min()) > 0.99 else "at least half white"
            logger.info("the mask is all %s: the whole image is repainted", shade)
        if (own := (self.box.height, self.box.width)) != self.size:
            (height, width), (h, w) = own, self.size
            logger.info("repainting a part of %dx%d pixels at %dx%d", width, height, w, h)
        elif self._is_small(model_size):
            logger.info("a small part of a large image: --only-masked 32 repaints it at the model's own size")

    def _is_small(self, model_size: int) -> bool:
        box, (height, width) = masks.box(self.mask), self.mask.shape
        share = box.height * box.width / (height * width)
        return height * width > LARGE * model_size**2 and share < SMALL

    def pixels(self) -> Tensor:
        """Return what the model sees of the image: (1, 3, h, w) in -1..1."""
        return _resized(from_uint8(self.image[self.box.part]), self.size).clamp(-1, 1)

    def shown_mask(self) -> Tensor:
        """Return what the model sees of the mask: (1, 1, h, w), 0 or 1."""
        mask = torch.from_numpy(np.ascontiguousarray(self.mask[self.box.part], np.float32))[None, None]
        if self.size[0] < self.box.height:  # made smaller, no line may be lost: any masked pixel counts
            return F.adaptive_max_pool2d((mask >= masks.THRESHOLD).float(), self.size)
        if self.size != (self.box.height, self.box.width):
            mask = F.interpolate(mask, size=self.size, mode="bilinear", antialias=True)
        return (mask >= masks.THRESHOLD).float()

    def finished(self, images: Tensor, matched: bool) -> Tensor:
        """Return whole images (b, 3, H, W) of decoded ones (b, 3, h, w)."""
        part = _resized(images, (self.box.height, self.box.width))
        if matched:
            part = self._matched(part)
        if part.shape[-2:] == self.mask.shape:
            return part
        whole = from_uint8(opaque(self.image)).expand(len(part), -1, -1, -1).clone()
        rows, columns = self.box.part
        whole[..., rows, columns] = part
        return whole

    def _matched(self, part: Tensor) -> Tensor:
        """Match the colours at the mask's border, in the part around it that this needs."""
        mask = self.mask[self.box.part]
        rows, columns = masks.box(mask, 2 * RING).part
        distance = torch.from_numpy(masks.distance(~masks.binarize(mask[rows, columns]), RING))
        original = from_uint8(opaque(self.image[self.box.part][rows, columns]))
        result = part.clone()
        result[..., rows, columns] = match_border(part[..., rows, columns], original, distance)
        return result


class Shown(Protocol):
    """What an Inpainter shows the model: a Region, or a window of outpainting."""

    def pixels(self) -> Tensor: ...
    def shown_mask(self) -> Tensor: ...


class Inpainter:
    """A way to repaint the masked part; there is one for each kind of model.

    Args:
        from_image: begin with the image with noise on it, not with noise alone.
    """

    def __init__(self, run: Run, frame: Frame, shown: Shown, from_image: bool) -> None:
        self.run = run
        self.model = run.model
        self.frame = frame
        self.from_image = from_image
        self.encode(shown.pixels(), frame.pad(shown.shown_mask()).to(run.model.device))

    def encode(self, image: Tensor, mask: Tensor) -> None:
        """Encode the image (1, 3, h, w), once for all batches; mask (1, 1, h, w) is framed."""
        raise NotImplementedError

    def paint(self, batch: BatchRun) -> Tensor:
        """Return latents (b, c, h, w) of a batch."""
        raise NotImplementedError


class InpaintModel(Inpainter):
    """By a model that sees the mask and what is left of the image."""

    def encode(self, image: Tensor, mask: Tensor) -> None:
        framed = self.frame.pad(image).to(mask.device)
        self._mask = mask
        self._left = self.run.encode_framed(self.model.left(framed, mask))
        self._whole = self.run.encode_framed(framed) if self.from_image else None
        self._warn_of_missed(mask)

    def paint(self, batch: BatchRun) -> Tensor:
        left = batch.sample_posterior(self._left)
        x_0 = batch.sample_posterior(self._whole, call=1) if self.from_image else None
        x_t = batch.begin(x_0)
        concat = self.model.concatenated(self._mask, left)
        return batch.denoise(x_t, batch.cond(lambda context: self.model.hybrid(context, concat)))

    def _warn_of_missed(self, mask: Tensor) -> None:
        """Warn where the mask at the size of the latents is hardly the mask."""
        shape = self.run.latent_shape(self.frame)
        shown = F.interpolate(F.interpolate(mask, size=shape[1:]), size=mask.shape[-2:])  # both nearest
        missed = 1 - float((mask * shown).sum() / mask.sum())
        if missed > MISSED:
            logger.warning(
                "the mask is finer than the %d pixels that this model resolves: it keeps %d %% of it; "
                "--mask-grow or --only-masked helps",
                self.model.downsampling_factor,
                round(100 * missed),
            )


class LatentMasking(Inpainter):
    """By a model that does not: what is outside the mask is put back before every step, and at the end."""

    def encode(self, image: Tensor, mask: Tensor) -> None:
        self._posterior = self.run.encode(image, self.frame)
        # A latent with any masked pixel is repainted: none of what is to go may shine through.
        self._keep = 1 - F.max_pool2d(mask, self.model.downsampling_factor)  # (1, 1, h, w)

    def paint(self, batch: BatchRun) -> Tensor:
        x_0 = batch.sample_posterior(self._posterior)
        x_t = batch.begin(x_0)
        latents = batch.denoise(x_t, batch.cond(), Keep(self._keep, x_0))
        return self._keep * x_0 + (1 - self._keep) * latents


def inpainter_of(run: Run, frame: Frame, shown: Shown, from_image: bool) -> Inpainter:
    """Return the way to inpaint with the model of a run."""
    sees_mask = isinstance(run.model, LatentInpaintDiffusion)
    return (InpaintModel if sees_mask else LatentMasking)(run, frame, shown, from_image)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)


def load(request: Inpaint) -> Inpaint:
    """Return the request with its image and its mask read. Raises: InputError."""
    no_latents(request)
    if request.raw and (request.only_masked is not None or request.mask_blur):
        other = "--mask-blur" if request.only_masked is None else "--only-masked"
        raise InputError(f"--raw outputs the decoded image as it is, so it cannot be combined with {other}")
    if request.only_masked is not None and request.save_latents:
        raise InputError(
            "--save-latents cannot be combined with --only-masked, whose latents cover only the cropped "
            "region"
        )
    request = read_images(request, alpha=True)
    image = request.init_img
    check_alpha(image, request, to_paste=not request.raw)
    height, width = image.values.shape[:2]
    mask = _mask(request.mask, image)
    masks.check(mask.values, height, width)
    masks.check_paints(masks.prepared(mask.values, invert=request.invert_mask, grow=request.mask_grow))
    return replace(request, mask=mask)


def check_alpha(image: InputArray, request: Request, to_paste: bool = True) -> None:
    """Refuse a format that would lose the alpha of an image that is pasted back."""
    if to_paste and request.format == "jpg" and image.values.shape[2] == 4:
        name = image.file or "the image"
        raise InputError(f"--format jpg cannot hold the transparency of {name}; use png or webp")


def _mask(given: Any, image: InputArray) -> InputArray:
    """Return the mask of --mask, or of the transparent part of the image."""
    if isinstance(given, InputArray) and given.about in (None, image.sha256):
        return given
    if isinstance(given, (str, os.PathLike)) and given:
        with quietly():  # no colour of a mask is kept or seen
            pixels = np.asarray(open_image(given, alpha=True, own_colours=True))
        try:
            return InputArray(masks.from_image(pixels), file_sha256(given), os.fspath(given))
        except InputError as error:
            raise InputError(f"--mask {given}: {error}") from error
    if given is not None and not isinstance(given, (str, InputArray)):
        return of_array(np.asarray(given, np.float32))
    if image.values.shape[2] == 4 and image.values[:, :, 3].min() < 255:
        return InputArray(masks.from_alpha(image.values), image.sha256, about=image.sha256)
    raise InputError(
        f"nothing selects what to repaint in {image.file or 'the image'}; give --mask FILE, which is "
        "white there, or an image that is transparent there"
    )


TASK = Task(inpaint, ("crossattn", "hybrid"), check_inpainting, load, numpy_start=True)
