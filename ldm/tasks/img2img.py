"""Pictures from a picture and a prompt (SDEdit, arXiv 2108.01073): encode, add noise, denoise from there.

Of num_steps steps the last t_enc = trunc(strength * num_steps) are taken; the sampler says which noise stands
before them (DDIM's is one step above, as in the published script).

Draws, in order: the encoder's posterior noise, the noise that is added, and the sampler's, one a step.
"""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.tasks.draws import Draws, make_draws
from ldm.tasks.latents import Position, rows
from ldm.tasks.sampling import Batch, Diffuser, Settings, Track


def img2img(
    model: LatentDiffusion,
    image: np.ndarray | Tensor,
    prompts: list[str],
    *,
    seed: int,
    strength: float = 0.8,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
    size: tuple[int, int] | None = None,
    resume: Position | None = None,
) -> Iterator[Batch]:
    """Make pictures like `image` (h, w, 3) uint8, of exactly its size, as the prompts say.

    strength 0 takes no step: the picture goes through the autoencoder, and its latents get the noise of the
    first training times (sigma 0.04 or less). 1 takes all, from what the noise of the last times
    leaves of it.

    A size that the model cannot take is padded by mirroring and cropped again; ldm.imaging.fit has other
    ways, that of the published script among them.

    Args:
        image: or latents (1 or batch_size, c, h, w), scaled, in place of what the autoencoder makes of one.
        size: (height, width) of the pictures, for latents; None is all of them.
        resume: go on from here, exactly, to the end of the run.

    Raises: InputError for a strength outside 0..1, or settings that the sampler or the model cannot honour.
    """
    settings = settings or Settings()
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}; expected 0 (keep the picture) to 1 (repaint it)")
    diffuser = Diffuser(model, settings, batch_size, track, resume)
    given = isinstance(image, Tensor)
    if given and size is None:
        size = tuple(side * model.downsampling_factor for side in image.shape[-2:])
    frame = Frame.around(*(size if given else image.shape[:2]), model.size_multiple)
    if given:
        image = rows(image, batch_size, diffuser.latent_shape(frame), batch_size, model.device)
    t_enc = diffuser.t_enc(strength)
    pictures = n_iter * len(prompts)
    draws = make_draws(settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code)
    return _generate(diffuser, frame, image, draws, prompts, t_enc, n_iter)


def _generate(
    diffuser: Diffuser,
    frame: Frame,
    image: np.ndarray | Tensor,
    draws: Draws,
    prompts: list[str],
    t_enc: int,
    n_iter: int,
) -> Iterator[Batch]:
    shape = diffuser.latent_shape(frame)
    given = isinstance(image, Tensor)
    posterior = None if given else diffuser.encode(frame.pad(from_uint8(image)))
    start = diffuser.sampler.start_index(t_enc)
    for part in diffuser.batches(prompts, n_iter):
        count = len(part.prompts)
        noise = draws.batch(part.first, count, start)
        eps = noise.normal("posterior", *shape)  # drawn in any case, so that what follows is the seed's
        x_0 = image[:count] if given else diffuser.drawn(posterior, eps)  # (b, c, h, w)
        x_t = diffuser.sampler.noised(x_0, t_enc, noise.normal("start", *shape))
        latents = diffuser.sample(x_t, *diffuser.text(part.prompts), noise, start=start)
        yield diffuser.batch(part, noise, latents, diffuser.decode(latents, frame))
