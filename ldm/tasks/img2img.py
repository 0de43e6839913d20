"""Pictures from a picture and a prompt (SDEdit, arXiv 2108.01073): encode, add noise, denoise from there.

Of num_steps steps the last t_enc = trunc(strength * num_steps) are taken; the sampler says which noise stands
before them (DDIM's is one step above, as in the published script).

Draws, in order: the encoder's posterior noise, the noise that is added, and the sampler's, one a step.
"""

from collections.abc import Iterator

import numpy as np

from ldm.errors import InputError
from ldm.imaging.colour import from_uint8
from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.tasks.draws import Draws, make_draws
from ldm.tasks.sampling import Batch, Diffuser, Settings, Track, batches


def img2img(
    model: LatentDiffusion,
    image: np.ndarray,
    prompts: list[str],
    *,
    seed: int,
    strength: float = 0.8,
    batch_size: int = 1,
    n_iter: int = 1,
    settings: Settings | None = None,
    fixed_code: bool = False,
    track: Track | None = None,
) -> Iterator[Batch]:
    """Make pictures like `image` (h, w, 3) uint8, of exactly its size, as the prompts say.

    strength 0 keeps the picture (but for the autoencoder and the least noise), 1 keeps nearly nothing of it.
    A size that the model cannot take is padded by mirroring and cropped again; the published script shrinks
    it to a multiple of 64 instead.

    Raises: InputError for a strength outside 0..1, or settings that the sampler or the model cannot honour.
    """
    settings = settings or Settings()
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {strength}; expected 0 (keep the picture) to 1 (repaint it)")
    diffuser = Diffuser(model, settings, batch_size, track)
    t_enc = int(strength * diffuser.sampler.num_steps)
    pictures = n_iter * len(prompts)
    draws = make_draws(settings.rng, seed, model.device, batch_size, pictures, fixed_code=fixed_code)
    return _generate(diffuser, image, draws, prompts, t_enc, n_iter)


def _generate(
    diffuser: Diffuser, image: np.ndarray, draws: Draws, prompts: list[str], t_enc: int, n_iter: int
) -> Iterator[Batch]:
    frame = Frame.around(*image.shape[:2], diffuser.model.size_multiple)
    shape = diffuser.latent_shape(frame)
    posterior = diffuser.encode(frame.pad(from_uint8(image)))
    start = diffuser.sampler.start_index(t_enc)
    made = 0
    for index, (iteration, texts) in enumerate(batches(prompts, diffuser.batch_size, n_iter)):
        noise = draws.batch(made, len(texts), start)
        x_0 = diffuser.drawn(posterior, noise.normal("posterior", *shape))  # (b, c, h, w)
        x_t = diffuser.sampler.noised(x_0, t_enc, noise.normal("start", *shape))
        latents = diffuser.sample(x_t, *diffuser.text(texts), noise, start=start)
        images = diffuser.decode(latents, frame)
        record = diffuser.guard.record()
        yield Batch(texts, images, latents, iteration, index, noise.seeds, record)
        made += len(texts)
