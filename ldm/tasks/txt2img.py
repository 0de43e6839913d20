"""Pictures from prompts: noise -> latents -> picture.

Draws, in order: with `fixed_code` one x_T for the whole run; else one x_T a batch; then those of the sampler.
"""

from collections.abc import Iterator

from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.tasks.sampling import Batch, Diffuser, Draws, Settings, Track, batches


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
    diffuser = Diffuser(model, settings or Settings(), batch_size, track)
    frame = Frame.around(height, width, model.size_multiple)
    return _generate(diffuser, frame, prompts, seed, n_iter, fixed_code)


def _generate(
    diffuser: Diffuser, frame: Frame, prompts: list[str], seed: int, n_iter: int, fixed_code: bool
) -> Iterator[Batch]:
    draws = Draws(seed, diffuser.model.device, diffuser.batch_size)
    shape = diffuser.latent_shape(frame)
    start_code = draws.normal(*shape) if fixed_code else None
    for index, (iteration, texts) in enumerate(batches(prompts, diffuser.batch_size, n_iter)):
        x_t = draws.normal(*shape) if start_code is None else start_code
        latents = diffuser.sample(x_t[: len(texts)], *diffuser.text(texts), draws.normal_like)
        yield Batch(texts, diffuser.decode(latents, frame), latents, iteration, index)
