"""High-resolution images in two passes: the composition first, then the detail.

1. An image of height x width, as text-to-image makes it.
2. It is enlarged `hires` times, then noise is added and removed as in image-to-image, with `hires_strength`.

The second pass keeps what the first composes at the size that the model knows: subjects are not repeated.
Enlarging the image (bicubic, through the autoencoder) stays sharp at any strength. Enlarging the latents
(bilinear) costs nothing but blurs, so that the strength must be 0.55 or more, which repaints more of the
composition.

Noise is drawn in this order: that of text-to-image, then of the second pass the posterior's (pixel mode), the
added noise, one draw a step.
"""

import math
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from ldm.errors import InputError
from ldm.requests import Txt2Img
from ldm.tasks.batch import Batch
from ldm.tasks.run import BatchRun, Run
from ldm.wording import counted

MAX_FACTOR = 4.0


def hires(run: Run, request: Txt2Img) -> Iterator[Batch]:
    """Make images `request.hires` times as large as height x width.

    Raises: InputError where the strength leaves no step to the second pass.
    """
    sampler = run.sampler_of(request.hires_steps)
    steps = int(request.hires_strength * sampler.num_steps)
    if not steps:
        raise InputError(
            f"--hires-strength {request.hires_strength:g} leaves none of "
            f"{counted(sampler.num_steps, 'step')} to the second pass; expected more of one or the other"
        )
    large = run.frame(*enlarged_size(request.height, request.width, request.hires))
    small = run.frame(request.height, request.width)
    run.plan(large)
    for first in run.each(small):
        cond = first.cond()
        second = first.again(large, stage=1, steps=steps, sampler=sampler)
        if second.is_resumed():
            x_t = run.resume.state.x_t.to(run.model.device)
        else:
            composed = first.denoise(first.begin(), cond)
            x_t = second.begin(enlarged(composed, first, second, request.hires_mode))
        yield second.done(second.denoise(x_t, cond))


def enlarged_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Return the (height, width) of the second pass."""
    return round(factor * height), round(factor * width)


def first_pass(height: int, width: int, side: int, multiple: int) -> tuple[int, int, float] | None:
    """Return the height, width and factor of two passes that give exactly height x width.

    The first is as near as can be to side^2 pixels and to multiples of `multiple`, but for factors above
    MAX_FACTOR. None if there is no way.
    """
    wanted = min((height * width) ** 0.5 / side, MAX_FACTOR)
    found = []
    for h in range(math.ceil(height / (MAX_FACTOR + 0.5)), height):
        w = max(1, round(width * h / height))
        low = max((height - 0.49) / h, (width - 0.49) / w)
        high = min((height + 0.49) / h, (width + 0.49) / w, MAX_FACTOR)
        decimals = range(1, 6)
        factor = next((f for d in decimals if low <= (f := round((low + high) / 2, d)) <= high), None)
        if factor is not None and factor > 1 and enlarged_size(h, w, factor) == (height, width):
            odd = (h % multiple > 0) + (w % multiple > 0)
            found.append((odd + 8 * abs(math.log(factor / wanted)) + len(str(factor)) / 20, h, w, factor))
    return min(found)[1:] if found else None


def enlarged(latents: Tensor, first: BatchRun, second: BatchRun, mode: str) -> Tensor:
    """Enlarge latents (b, c, h, w) of the first pass to the size of the second."""
    if mode == "latent":
        return F.interpolate(latents, second.shape[1:], mode="bilinear", antialias=False)
    size = (second.frame.height, second.frame.width)
    images = F.interpolate(first.decode(latents), size, mode="bicubic", antialias=False).clamp(-1, 1)
    return second.sample_posterior(second.run.encode(images, second.frame))
