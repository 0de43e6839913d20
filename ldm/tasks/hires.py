"""Pictures larger than the model was trained on, in two passes: the composition first, then the detail.

1. A picture of height x width, as txt2img makes it.
2. It is enlarged `scale` times, then noise is added and taken away again as in img2img, with `strength`.

What the first pass composes at the size that the model knows, the second keeps: no second head. Enlarging the
picture (bicubic, through the autoencoder) stays sharp, with any strength. Enlarging the latents (bilinear)
costs nothing but blurs, so that `strength` must be 0.55 or more, which repaints more of the composition.

Draws, in order: those of txt2img, then of the second pass the posterior's (pixel mode), the noise that is
added, and the sampler's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.tasks.draws import BatchDraws, Draws, make_draws
from ldm.tasks.latents import Position, rows
from ldm.tasks.sampling import Batch, Diffuser, Settings, Track

DEFAULT_STRENGTHS = {"pixel": 0.4, "latent": 0.65}


@dataclass(frozen=True)
class Hires:
    """The second pass.

    Args:
        scale: above 1, to 4.
        mode: what is enlarged, "pixel" or "latent".
        strength: above 0, to 1: of `num_steps` steps the last trunc(strength * num_steps) are taken; None is
            the mode's own of DEFAULT_STRENGTHS.
        num_steps: None is as many as the first pass has.
    """

    scale: float
    mode: str = "pixel"
    strength: float | None = None
    num_steps: int | None = None

    def __post_init__(self) -> None:
        if not 1 < self.scale <= 4:
            raise InputError(f"hires scale is {self.scale:g}: expected above 1, to 4")
        if self.mode not in DEFAULT_STRENGTHS:
            raise InputError(f"unknown hires mode {self.mode!r}: expected {' or '.join(DEFAULT_STRENGTHS)}")
        if self.strength is None:
            object.__setattr__(self, "strength", DEFAULT_STRENGTHS[self.mode])
        if not 0 < self.strength <= 1:
            raise InputError(f"hires strength is {self.strength:g}: expected above 0, to 1")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the final picture."""
        return round(self.scale * height), round(self.scale * width)


def hires_txt2img(
    model: LatentDiffusion,
    prompts: list[str],
    hires: Hires,
    *,
    seed: int,
    height: int,
    width: int,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
    latents: Tensor | None = None,
    resume: Position | None = None,
) -> Iterator[Batch]:
    """Make pictures of `hires.size(height, width)`; height x width is the first pass's.

    The arguments are those of `txt2img`.

    Raises: InputError for settings that the sampler or the model cannot honour.
    """
    settings = settings or Settings()
    passes = TwoPasses(
        Diffuser(model, settings, batch_size, track, resume),
        Frame.around(height, width, model.size_multiple),
        Frame.around(*hires.size(height, width), model.size_multiple),
        hires,
        latents,
    )
    pictures = n_iter * len(prompts)
    draws = make_draws(settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code)
    return passes.generate(draws, prompts, n_iter)


class TwoPasses:
    """A diffuser and its second pass."""

    def __init__(
        self, diffuser: Diffuser, small: Frame, large: Frame, hires: Hires, latents: Tensor | None = None
    ):
        self.first = diffuser
        self.second = diffuser.with_steps(hires.num_steps or diffuser.settings.num_steps)
        self.small = small
        self.large = large
        self.mode = hires.mode
        self.t_enc = int(hires.strength * self.second.sampler.num_steps)
        if self.t_enc == 0:
            raise InputError(
                f"hires strength {hires.strength:g} leaves none of {self.second.sampler.num_steps} steps; "
                "expected more of one or the other"
            )
        self.start = self.second.sampler.start_index(self.t_enc)
        self.given = latents
        if latents is not None:
            size, shape = diffuser.batch_size, diffuser.latent_shape(small)
            self.given = rows(latents, size, shape, size, diffuser.model.device)

    def generate(self, draws: Draws, prompts: list[str], n_iter: int) -> Iterator[Batch]:
        """Yield the batches of a run."""
        for part in self.first.batches(prompts, n_iter):
            self.second.prompts = prompts
            count = len(part.prompts)
            text = self.first.text(part.prompts)
            noise = draws.batch(part.first, count, self.start, stage=1)
            resume = self.second.resume
            if resume is not None and resume.is_of(noise):
                x_t = resume.state.x_t.to(self.first.model.device)
            else:
                x_t = self.noised(self.compose(draws.batch(part.first, count), text), noise)
            latents = self.second.sample(x_t, *text, noise, start=self.start)
            yield self.second.batch(part, noise, latents, self.second.decode(latents, self.large))

    def compose(self, noise: BatchDraws, text: tuple[Tensor, Tensor | None]) -> Tensor:
        """Return the latents of the first pass (b, c, h, w)."""
        x_t = noise.normal("start", *self.first.latent_shape(self.small))
        return self.first.sample(x_t if self.given is None else self.given[: noise.count], *text, noise)

    def noised(self, latents: Tensor, noise: BatchDraws) -> Tensor:
        """Enlarge latents (b, c, h, w) to (b, c, h', w') and add the noise that the second pass removes."""
        shape = self.second.latent_shape(self.large)
        if self.mode == "latent":
            x_0 = F.interpolate(latents, shape[1:], mode="bilinear", antialias=False)
        else:
            images = self.first.decode(latents, self.small)  # (b, 3, height, width)
            size = (self.large.height, self.large.width)
            images = F.interpolate(images, size, mode="bicubic", antialias=False).clamp(-1, 1)
            posterior = self.first.encode(self.large.pad(images))
            x_0 = self.first.drawn(posterior, noise.normal("posterior", *shape))
        return self.second.sampler.noised(x_0, self.t_enc, noise.normal("start", *shape))
