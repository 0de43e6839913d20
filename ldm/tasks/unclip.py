"""Pictures like pictures (unCLIP, arXiv 2204.06125, section 2.1), as a prompt says.

    z_k   = the image embedding of picture k, noised to its level l_k (arXiv 2106.15282); level 0 is a little
    c_adm = sum_k w_k [z_k, emb(l_k)] / sum_k w_k      what the UNet is told beside the text
    c_adm = [z', emb(l')]      of several pictures: the embedding of their mix, noised once more to a level l'

Higher levels keep less of the pictures; weights may be negative. A picture is seen by the image encoder
squeezed to its square, whatever its shape: what comes back has the size that is asked for. The published page
cuts sides to multiples of 64 before that; here the encoder gets the picture itself.

Draws, in order: the noise on each embedding, that on the mix, x_T, then those of the sampler.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.imaging.padding import Frame
from ldm.models.unclip import ImageEmbeddingConditionedLatentDiffusion
from ldm.tasks.draws import BatchDraws, Draws, make_draws
from ldm.tasks.latents import Position, rows
from ldm.tasks.sampling import Batch, Diffuser, Settings, Track

MIX_NOISE_LEVEL = 50  # as the published page has it
LARGEST_WEIGHT = 1e6  # so that none drowns the others; only proportions matter
NUM_LEVELS = 1000  # of the published models
SMALLEST_SUM = 1e-6  # of the weights, as a part of the sum of their magnitudes


@dataclass(frozen=True)
class Mix:
    """How several pictures become one embedding.

    Args:
        weights: one a picture; only their proportions matter.
        noise_level: one a picture, 0 to 999 with the published models.
        mix_noise_level: of the mix, once more; None leaves it as it is. One picture alone is no mix.
    """

    weights: tuple[float, ...]
    noise_level: tuple[int, ...]
    mix_noise_level: int | None = None

    @classmethod
    def of(
        cls,
        pictures: int,
        weights: Sequence[float] | None = None,
        noise_level: int | Sequence[int] = 0,
        mix_noise_level: int | None = MIX_NOISE_LEVEL,
    ) -> "Mix":
        """Return the mix of so many pictures: equal weights where none are given, one level for all of them.

        Raises: InputError where counts differ, or the weights come to nothing.
        """
        if not pictures:
            raise InputError("no picture to vary; expected one or more")
        weights = (1.0,) * pictures if weights is None else tuple(weights)
        if len(weights) != pictures:
            raise InputError(f"{len(weights)} weights for {pictures} pictures; give one for each, in order")
        if not all(abs(weight) <= LARGEST_WEIGHT for weight in weights):
            raise InputError(
                f"the weights of the pictures are {_listed(weights)}; expected numbers within "
                f"{LARGEST_WEIGHT:g} of 0"
            )
        if abs(math.fsum(weights)) <= SMALLEST_SUM * math.fsum(map(abs, weights)):
            raise InputError(
                f"the weights of the pictures, {_listed(weights)}, sum to 0; the mix is divided by that: "
                "change one of them"
            )
        levels = tuple(noise_level) if isinstance(noise_level, Sequence) else (noise_level,)
        if len(levels) not in (1, pictures):
            raise InputError(
                f"{len(levels)} noise levels for {pictures} pictures; give one for all, or one for each"
            )
        levels = levels * pictures if len(levels) == 1 else levels
        mix = cls(weights, levels, mix_noise_level if pictures > 1 else None)
        mix.check_levels(NUM_LEVELS)
        return mix

    def check_levels(self, count: int) -> None:
        """Raise InputError where a level is none of the `count` that there are."""
        again = () if self.mix_noise_level is None else (self.mix_noise_level,)
        for level in (*self.noise_level, *again):
            if level not in range(count):
                raise InputError(f"noise level {level}: expected a whole number from 0 to {count - 1}")


def unclip(
    model: ImageEmbeddingConditionedLatentDiffusion,
    images: Sequence[np.ndarray],
    prompts: list[str],
    *,
    seed: int,
    height: int,
    width: int,
    weights: Sequence[float] | None = None,
    noise_level: int | Sequence[int] = 0,
    mix_noise_level: int | None = MIX_NOISE_LEVEL,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
    latents: Tensor | None = None,
    resume: Position | None = None,
) -> Iterator[Batch]:
    """Make height x width pictures like `images`, each (h, w, 3) uint8 of any size, as the prompts say.

    Args:
        weights, noise_level, mix_noise_level: see `Mix`.
        latents: (1 or batch_size, c, h, w), the start noise of every batch in place of the one that is drawn.
        resume: go on from here, exactly, to the end of the run.

    Raises: InputError for weights or levels that cannot be, or settings that the sampler or the model cannot
        honour.
    """
    settings = settings or Settings()
    mix = Mix.of(len(images), weights, noise_level, mix_noise_level)
    diffuser = Diffuser(model, settings, batch_size, track, resume, accepts=("crossattn-adm",))
    if model.noise_augmentor is None:  # no noise to add
        mix = replace(mix, mix_noise_level=None)
    mix.check_levels(1 if model.noise_augmentor is None else model.noise_augmentor.max_noise_level)
    frame = Frame.around(height, width, model.size_multiple)
    pictures = n_iter * len(prompts)
    draws = make_draws(settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code)
    if latents is not None:
        latents = rows(latents, batch_size, diffuser.latent_shape(frame), batch_size, model.device)
    return _generate(diffuser, frame, list(images), mix, draws, prompts, n_iter, latents)


def _generate(
    diffuser: Diffuser,
    frame: Frame,
    images: list[np.ndarray],
    mix: Mix,
    draws: Draws,
    prompts: list[str],
    n_iter: int,
    given: Tensor | None,
) -> Iterator[Batch]:
    model, shape = diffuser.model, diffuser.latent_shape(frame)
    embeddings = [_embedded(diffuser, image) for image in images]
    for part in diffuser.batches(prompts, n_iter):
        count = len(part.prompts)
        noise = draws.batch(part.first, count)
        c_adm = _mixed(model, embeddings, mix, noise)
        x_t = noise.normal("start", *shape)  # drawn in any case, so that the steps' noise is the seed's
        x_t = x_t if given is None else given[:count]
        context, empty = diffuser.text(part.prompts)
        cond = model.conditioning(context, c_adm)
        uncond = None if empty is None else model.unconditional(cond, empty)
        latents = diffuser.sample(x_t, cond, uncond, noise)
        yield diffuser.batch(part, noise, latents, diffuser.decode(latents, frame))


@torch.no_grad()
def _embedded(diffuser: Diffuser, image: np.ndarray) -> Tensor:
    """Return the embedding (1, D), in float32, of a picture (h, w, 3) uint8."""
    pixels = from_uint8(image).to(diffuser.model.device)
    encode = diffuser.model.embedder
    return diffuser.guard.run("image encoder", "encoding the picture", lambda: encode(pixels))


@torch.no_grad()
def _mixed(
    model: ImageEmbeddingConditionedLatentDiffusion, embeddings: list[Tensor], mix: Mix, noise: BatchDraws
) -> Tensor:
    """Return the label (b, 2 D) of embeddings (1, D), noised for each picture of a batch by itself."""
    labels = []
    for k, (embedding, level) in enumerate(zip(embeddings, mix.noise_level, strict=True)):
        eps = noise.normal("conditioning", embedding.shape[1], call=k)  # (b, D)
        labels.append(model.embedding_conditioning(embedding.expand_as(eps), level, eps))
    label = model.mix(labels, mix.weights)
    if mix.mix_noise_level is None:
        return label
    eps = noise.normal("conditioning", embeddings[0].shape[1], call=len(embeddings))
    return model.renoise(label, mix.mix_noise_level, eps)


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
