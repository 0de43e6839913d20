"""Paint a part of a picture anew, as a prompt says, and leave the rest as it is, byte for byte.

Two kinds of model can:

    made for it (LatentInpaintDiffusion)   sees the mask and what is left of the picture: c_concat
    any text-to-image model                latent masking: before every step what is outside the mask is put
                                           back, at that step's noise (arXiv 2201.09865, equation 8, without
                                           its resampling)

The model is told a mask of yes and no, at the size of the latents. The picture itself takes the paint by the
mask's own pixels and greys, after the colours at its border were matched (`ldm.imaging.spread`); `raw` gives
what the model made of the whole picture, as published.

Draws, in order: the posterior noise of what is left of the picture, or of the picture for latent masking;
that of the picture, for a model of the first kind that starts from it (strength below 1); the start noise;
then of every step what is put back and the sampler's own.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging import masks
from ldm.imaging.colour import from_uint8
from ldm.imaging.masks import Box
from ldm.imaging.padding import Frame
from ldm.imaging.paste import Paste, opaque
from ldm.imaging.spread import RING, match_border
from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.latent_inpaint import LatentInpaintDiffusion
from ldm.tasks.draws import BatchDraws, Draws, make_draws
from ldm.tasks.latents import Position
from ldm.tasks.sampling import Batch, Diffuser, Keep, Settings, Track

LARGE, SMALL = 2.0, 0.2  # pictures of so many of the model's, boxes of so little of the picture
MISSED = 0.5  # of the masked pixels: more that the model is told to keep are worth a word

logger = logging.getLogger(__name__)


def inpaint(
    model: LatentDiffusion,
    image: np.ndarray,
    mask: np.ndarray,
    prompts: list[str],
    *,
    seed: int,
    strength: float = 1.0,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
    resume: Position | None = None,
    mask_blur: int = 0,
    only_masked: int | None = None,
    model_size: int | None = None,
    matched: bool = True,
    raw: bool = False,
) -> Iterator[Batch]:
    """Paint `image` (h, w, 3 or 4) uint8 anew where `mask` (h, w) is 1; of exactly its size and channels.

    Transparency is shown to the model on white, and what is painted is opaque.

    Args:
        mask: float32, 0 (keep) to 1 (paint), see ldm.imaging.masks, whose `prepared` inverts and grows it.
        strength: 0 keeps what is in the mask (but for the autoencoder), 1 begins with pure noise.
        resume: go on from here, exactly, to the end of the run.
        mask_blur: fade the paint out over so many pixels, inside the mask.
        only_masked: paint the mask's box and so many pixels around it, at the model's own size.
        model_size: that size, the side of a square in pixels; None is what the model says.
        matched: draw the colours at the border of the mask to those beside it.
        raw: give the whole picture as it was decoded.

    Raises: InputError for a mask of another size or with nothing to paint, a strength outside 0..1, settings
        that contradict each other or that the sampler or the model cannot honour.
    """
    settings = settings or Settings()
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}; expected 0 (keep what is there) to 1 (paint it anew)")
    if raw and (only_masked is not None or mask_blur):
        what = "a mask's blur" if only_masked is None else "only the masked part"
        raise InputError(f"raw gives the whole picture as the model made it, which contradicts {what}")
    mask = np.asarray(mask, np.float32)
    masks.check(mask, *image.shape[:2])
    masks.check_paints(mask)
    sees_mask = isinstance(model, LatentInpaintDiffusion)
    accepts = ("crossattn", "hybrid") if sees_mask else ("crossattn",)
    diffuser = Diffuser(model, settings, batch_size, track, resume, accepts)
    model_size = model_size or model.image_size * model.downsampling_factor
    scene = Scene.of(image, mask, only_masked, model_size)
    scene.say(model_size)
    paste = None if raw else Paste(image, masks.weight(mask, mask_blur))
    t_enc = diffuser.t_enc(strength) if strength < 1 else None
    pictures = n_iter * len(prompts)
    draws = make_draws(
        settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code, numpy_start=True
    )
    frame = Frame.around(*scene.size, model.size_multiple)
    painter = (SeesMask if sees_mask else KeepsLatents)(diffuser, frame, scene, t_enc)
    return _generate(painter, draws, prompts, n_iter, paste, matched and not raw)


def _generate(
    painter: "Painter", draws: Draws, prompts: list[str], n_iter: int, paste: Paste | None, matched: bool
) -> Iterator[Batch]:
    diffuser = painter.diffuser
    painter.look()
    for part in diffuser.batches(prompts, n_iter):
        noise = draws.batch(part.first, len(part.prompts), painter.start)
        latents = painter.paint(part.prompts, noise)
        images = painter.scene.finished(diffuser.decode(latents, painter.frame), matched)
        yield diffuser.batch(part, noise, latents, images, paste)


@dataclass(frozen=True)
class Scene:
    """The picture and its mask, the part of them that is worked on, and the way back.

    Args:
        image: (H, W, 3 or 4) uint8.
        mask: (H, W) float32.
        box: the part of both that the model sees,
        size: (h, w) and the size that it sees it at.
    """

    image: np.ndarray
    mask: np.ndarray
    box: Box
    size: tuple[int, int]

    @classmethod
    def of(cls, image: np.ndarray, mask: np.ndarray, only_masked: int | None, model_size: int) -> "Scene":
        height, width = mask.shape
        if only_masked is None:
            return cls(image, mask, Box(0, 0, height, width), (height, width))
        box = masks.squarer(masks.box(mask, only_masked), height, width)
        scale = model_size / (box.height * box.width) ** 0.5
        return cls(image, mask, box, (max(round(box.height * scale), 1), max(round(box.width * scale), 1)))

    def say(self, model_size: int) -> None:
        """Log what a user may not expect."""
        hard = masks.hard(self.mask)
        if hard.all():
            logger.info("the mask is all white: the whole picture is painted anew")
        if (own := (self.box.height, self.box.width)) != self.size:
            (height, width), (h, w) = own, self.size
            logger.info("painting a part of %dx%d pixels at %dx%d", width, height, w, h)
        elif self._is_small(model_size):
            logger.info("a small part of a large picture: --only-masked 32 paints it at the model's own size")

    def _is_small(self, model_size: int) -> bool:
        box, (height, width) = masks.box(self.mask), self.mask.shape
        share = box.height * box.width / (height * width)
        return height * width > LARGE * model_size**2 and share < SMALL

    def pixels(self) -> Tensor:
        """Return what the model sees of the picture: (1, 3, h, w) in -1..1, transparency on white."""
        return _resized(from_uint8(opaque(self.image[self.box.part])), self.size).clamp(-1, 1)

    def seen(self) -> Tensor:
        """Return what the model is told of the mask: (1, 1, h, w), 0 or 1."""
        mask = torch.from_numpy(np.ascontiguousarray(self.mask[self.box.part], np.float32))[None, None]
        if self.size[0] < self.box.height:  # made smaller, no line may be lost: any masked pixel counts
            return F.adaptive_max_pool2d((mask >= masks.THRESHOLD).float(), self.size)
        if self.size != (self.box.height, self.box.width):
            mask = F.interpolate(mask, size=self.size, mode="bilinear", antialias=True)
        return (mask >= masks.THRESHOLD).float()

    def finished(self, images: Tensor, matched: bool) -> Tensor:
        """Return whole pictures (b, 3, H, W) of what was decoded (b, 3, h, w)."""
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
        distance = torch.from_numpy(masks.distance(~masks.hard(mask[rows, columns]), RING))
        original = from_uint8(opaque(self.image[self.box.part][rows, columns]))
        result = part.clone()
        result[..., rows, columns] = match_border(part[..., rows, columns], original, distance)
        return result


class Painter:
    """A way to paint the masked part; subclasses are one for each kind of model."""

    def __init__(self, diffuser: Diffuser, frame: Frame, scene: Scene, t_enc: int | None) -> None:
        self.diffuser = diffuser
        self.model = diffuser.model
        self.frame = frame
        self.scene = scene
        self.t_enc = t_enc
        self.start = 0 if t_enc is None else diffuser.sampler.start_index(t_enc)
        self.shape = diffuser.latent_shape(frame)

    def look(self) -> None:
        """Encode the picture, once for all batches."""
        raise NotImplementedError

    def paint(self, prompts: list[str], noise: BatchDraws) -> Tensor:
        """Return latents (b, c, h, w) of a batch."""
        raise NotImplementedError

    def _seen(self) -> tuple[Tensor, Tensor]:
        """Return the picture (1, 3, h, w) and the mask (1, 1, h, w), framed, on the model's device."""
        framed = self.frame.pad(self.scene.pixels()), self.frame.pad(self.scene.seen())
        return tuple(x.to(self.model.device) for x in framed)

    def _begun(self, x_0: Tensor | None, noise: BatchDraws) -> Tensor:
        """Return x_t to start from: pure noise, or the picture with noise on it."""
        eps = noise.normal("start", *self.shape)
        return eps if self.t_enc is None else self.diffuser.sampler.noised(x_0, self.t_enc, eps)


class SeesMask(Painter):
    """By a model that sees the mask and what is left of the picture."""

    def look(self) -> None:
        image, mask = self._seen()
        self._mask = mask
        self._left = self.diffuser.encode(self.model.left(image, mask))
        self._whole: DiagonalGaussianDistribution | None = None
        if self.t_enc is not None:
            self._whole = self.diffuser.encode(image)
        self._say_missed(mask)

    def paint(self, prompts: list[str], noise: BatchDraws) -> Tensor:
        left = self.diffuser.drawn(self._left, noise.normal("posterior", *self.shape))
        x_0 = None
        if self._whole is not None:
            x_0 = self.diffuser.drawn(self._whole, noise.normal("posterior", *self.shape, call=1))
        x_t = self._begun(x_0, noise)
        context, empty = self.diffuser.text(prompts)
        cond = self.model.hybrid(context, self.model.concatenated(self._mask, left))
        uncond = None if empty is None else self.model.unconditional(cond, empty)
        return self.diffuser.sample(x_t, cond, uncond, noise, start=self.start)

    def _say_missed(self, mask: Tensor) -> None:
        """Warn where the mask at the size of the latents is hardly the mask."""
        told = F.interpolate(F.interpolate(mask, size=self.shape[1:]), size=mask.shape[-2:])  # both nearest
        missed = 1 - float((mask * told).sum() / mask.sum())
        if missed > MISSED:
            logger.warning(
                "the mask is finer than the %d pixels that this model sees: it is told to keep %d %% of it; "
                "--mask-grow or --only-masked helps",
                self.model.downsampling_factor,
                round(100 * missed),
            )


class KeepsLatents(Painter):
    """By a model that does not: what is outside the mask is put back before every step, and at the end."""

    def look(self) -> None:
        image, mask = self._seen()
        self._posterior = self.diffuser.encode(image)
        # A latent with any masked pixel is painted: none of what is to go may shine through.
        self._keep = 1 - F.max_pool2d(mask, self.model.downsampling_factor)  # (1, 1, h, w)

    def paint(self, prompts: list[str], noise: BatchDraws) -> Tensor:
        x_0 = self.diffuser.drawn(self._posterior, noise.normal("posterior", *self.shape))
        x_t = self._begun(x_0, noise)
        text = self.diffuser.text(prompts)
        latents = self.diffuser.sample(x_t, *text, noise, start=self.start, keep=Keep(self._keep, x_0))
        return self._keep * x_0 + (1 - self._keep) * latents


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)
