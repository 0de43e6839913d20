"""Variations of images (unCLIP, arXiv 2204.06125, section 2.1), guided by a prompt.

    z_k   = the image embedding of image k, noised to its level l_k (arXiv 2106.15282); level 0 is a little
    label = sum_k w_k [z_k, emb(l_k)] / sum_k w_k      what the UNet is given with the text
    label = [z', emb(l')]      of several images: the embedding of their mix, noised once more to a level l'

Higher levels keep less of the images; weights may be negative. The image encoder sees an image squeezed to
its square, whatever its shape: the result has the size that is asked for. The reference page cuts sides to
multiples of 64 before that; here the encoder gets the image itself.

Noise is drawn in this order: that on each embedding, that on the mix, x_T, then one draw a step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.models.unclip import ImageEmbeddingConditionedLatentDiffusion
from ldm.requests import Unclip
from ldm.requests.resolving import MIX_NOISE_LEVEL
from ldm.tasks.batch import Batch
from ldm.tasks.inputs import read_inputs
from ldm.tasks.noise import BatchNoise
from ldm.tasks.run import Run, Task
from ldm.wording import counted

LARGEST_WEIGHT = 1e6  # so that none drowns the others; only proportions matter
NUM_LEVELS = 1000  # of the reference models
SMALLEST_SUM = 1e-6  # of the weights, as a part of the sum of their magnitudes


@dataclass(frozen=True)
class Mix:
    """How several images become one embedding.

    Args:
        weights: one an image; only their proportions matter.
        noise_level: one an image, 0 to 999 with the reference models.
        mix_noise_level: of the mix, once more; None leaves it as it is. One image alone is no mix.
    """

    weights: tuple[float, ...]
    noise_level: tuple[int, ...]
    mix_noise_level: int | None = None

    @classmethod
    def of(
        cls,
        images: int,
        weights: Sequence[float] | None = None,
        noise_level: int | Sequence[int] = 0,
        mix_noise_level: int | None = MIX_NOISE_LEVEL,
    ) -> "Mix":
        """Return the mix of so many images: equal weights where none are given, one level for all of them.

        Raises: InputError where counts differ, or the weights come to nothing.
        """
        if not images:
            raise InputError("no image to vary; expected one or more")
        weights = (1.0,) * images if weights is None else tuple(weights)
        if len(weights) != images:
            both = f"{counted(len(weights), 'weight')} for {counted(images, 'image')}"
            raise InputError(f"{both}; give one for each, in order")
        if not all(abs(weight) <= LARGEST_WEIGHT for weight in weights):
            raise InputError(
                f"the weights of the images are {_listed(weights)}; expected numbers within "
                f"{LARGEST_WEIGHT:g} of 0"
            )
        if abs(math.fsum(weights)) <= SMALLEST_SUM * math.fsum(map(abs, weights)):
            raise InputError(
                f"the weights of the images, {_listed(weights)}, sum to 0; the mix is divided by that: "
                "change one of them"
            )
        levels = tuple(noise_level) if isinstance(noise_level, Sequence) else (noise_level,)
        if len(levels) not in (1, images):
            both = f"{counted(len(levels), 'noise level')} for {counted(images, 'image')}"
            raise InputError(f"{both}; give one for all, or one for each")
        levels = levels * images if len(levels) == 1 else levels
        mix = cls(weights, levels, mix_noise_level if images > 1 else None)
        mix.check_levels(NUM_LEVELS)
        return mix

    def check_levels(self, count: int) -> None:
        """Raise InputError where a level is not below `count`."""
        again = () if self.mix_noise_level is None else (self.mix_noise_level,)
        for level in (*self.noise_level, *again):
            if level not in range(count):
                raise InputError(f"noise level {level}: expected a whole number from 0 to {count - 1}")


def unclip(run: Run, request: Unclip) -> Iterator[Batch]:
    """Make images of height x width like those of `request.init_img`, of any size, as the prompts say.

    Raises: InputError for noise levels that the model does not have.
    """
    mix = mix_of(request)
    model: ImageEmbeddingConditionedLatentDiffusion = run.model
    if model.noise_augmentor is None:  # no noise to add
        mix = replace(mix, mix_noise_level=None)
    mix.check_levels(1 if model.noise_augmentor is None else model.noise_augmentor.max_noise_level)
    embeddings = [run.networks.image_embedding(from_uint8(image.values)) for image in request.init_img]
    for batch in run.each(run.frame(request.height, request.width)):
        label = mixed(model, embeddings, mix, batch.noise)
        x_t = batch.begin()
        cond = batch.cond(lambda context, label=label: model.conditioning(context, label))
        yield batch.done(batch.denoise(x_t, cond))


def mix_of(request: Unclip) -> Mix:
    """Return how the images of a request are mixed. Raises: InputError."""
    level: int | None = MIX_NOISE_LEVEL if request.mix_noise_level is None else request.mix_noise_level
    if level == "off":
        level = None
    return Mix.of(len(request.init_img), request.image_weights, request.noise_level, level)


def mixed(
    model: ImageEmbeddingConditionedLatentDiffusion, embeddings: list[Tensor], mix: Mix, noise: BatchNoise
) -> Tensor:
    """Return the label (b, 2 D) of embeddings (1, D), noised for each image of a batch by itself."""
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


def load(request: Unclip) -> Unclip:
    """Return the request with its images read. Raises: InputError."""
    request = read_inputs(request)
    if request.mix_noise_level is not None and len(request.init_img) == 1:
        raise InputError(f"--mix-noise-level {request.mix_noise_level} needs more than one --init-img")
    Mix.of(len(request.init_img), request.image_weights, request.noise_level)
    return request


TASK = Task(unclip, ("crossattn-adm",), load=load)
