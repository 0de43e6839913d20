"""Pictures from prompts: noise -> latents -> picture.

Draws, in order: x_T, then those of the sampler.
"""

from collections.abc import Iterator

from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.tasks.draws import Draws, make_draws
from ldm.tasks.sampling import Batch, Diffuser, Settings, Track, batches


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
) -> Iterator[Batch]:
    """Make height x width pictures of the prompts, `batch_size` at a time, the whole list n_iter times.

    Any size: the model works on the next one that it can take, and the middle of that is returned.
    The inputs are checked at once, the pictures are made as they are asked for.

    Raises: InputError for settings that the sampler or the model cannot honour.
    """
    settings = settings or Settings()
    diffuser = Diffuser(model, settings, batch_size, track)
    frame = Frame.around(height, width, model.size_multiple)
    pictures = n_iter * len(prompts)
    draws = make_draws(settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code)
    return _generate(diffuser, frame, draws, prompts, n_iter)


def _generate(
    diffuser: Diffuser, frame: Frame, draws: Draws, prompts: list[str], n_iter: int
) -> Iterator[Batch]:
    shape = diffuser.latent_shape(frame)
    made = 0
    for index, (iteration, texts) in enumerate(batches(prompts, diffuser.batch_size, n_iter)):
        noise = draws.batch(made, len(texts))
        latents = diffuser.sample(noise.normal("start", *shape), *diffuser.text(texts), noise)
        images = diffuser.decode(latents, frame)
        record = diffuser.guard.record()
        yield Batch(texts, images, latents, iteration, index, noise.seeds, record)
        made += len(texts)
