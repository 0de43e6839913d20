"""Pictures from prompts: noise -> latents -> picture.

Draws, in order: x_T, then those of the sampler.
"""

from collections.abc import Iterator

from torch import Tensor

from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.tasks.draws import Draws, make_draws
from ldm.tasks.latents import Position, rows
from ldm.tasks.sampling import Batch, Diffuser, Settings, Track


def txt2img(
    model: LatentDiffusion,
    prompts: list[str],
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
    accepts: tuple[str | None, ...] = ("crossattn",),
) -> Iterator[Batch]:
    """Make height x width pictures of the prompts, `batch_size` at a time, the whole list n_iter times.

    Any size: the model works on the next one that it can take, and the middle of that is returned.
    The inputs are checked at once, the pictures are made as they are asked for.

    Args:
        latents: (1 or batch_size, c, h, w), the start noise of every batch in place of the one that is drawn.
        resume: go on from here, exactly, to the end of the run.
        accepts: what the model may be conditioned by, see Diffuser.

    Raises: InputError for settings that the sampler or the model cannot honour.
    """
    settings = settings or Settings()
    diffuser = Diffuser(model, settings, batch_size, track, resume, accepts)
    frame = Frame.around(height, width, model.size_multiple)
    pictures = n_iter * len(prompts)
    draws = make_draws(settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code)
    if latents is not None:
        latents = rows(latents, batch_size, diffuser.latent_shape(frame), batch_size, model.device)
    return _generate(diffuser, frame, draws, prompts, n_iter, latents)


def _generate(
    diffuser: Diffuser, frame: Frame, draws: Draws, prompts: list[str], n_iter: int, given: Tensor | None
) -> Iterator[Batch]:
    shape = diffuser.latent_shape(frame)
    for part in diffuser.batches(prompts, n_iter):
        noise = draws.batch(part.first, len(part.prompts))
        x_t = noise.normal("start", *shape)  # drawn in any case, so that the steps' noise is the seed's
        x_t = x_t if given is None else given[: len(part.prompts)]
        latents = diffuser.sample(x_t, *diffuser.text(part.prompts), noise)
        yield diffuser.batch(part, noise, latents, diffuser.decode(latents, frame))
