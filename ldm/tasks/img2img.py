"""Image-to-image (SDEdit, arXiv 2108.01073): encode, add noise, run the last strength * steps steps.

Of num_steps steps the last trunc(strength * num_steps) are run; the sampler knows which noise stands before
them (DDIM's is one step above, as in the reference script).

Noise is drawn in this order: the encoder's posterior, the added noise, one draw a step.
"""

from collections.abc import Iterator

from ldm.errors import InputError
from ldm.imaging.fit import choose_fit
from ldm.requests import Img2Img
from ldm.tasks.batch import Batch
from ldm.tasks.inputs import read_images, read_noise
from ldm.tasks.run import Run, Task


def img2img(run: Run, request: Img2Img) -> Iterator[Batch]:
    """Make images like `request.init_img`, of exactly its size unless another one is asked for.

    Strength 0 runs no step: the image goes through the autoencoder, and its latents get the noise of the
    first training times (sigma 0.04 or less). 1 runs all, from what the noise of the last times leaves of the
    image. A size that the model cannot take is padded by mirroring and cropped again. Latents may take the
    place of the image.
    """
    if request.latents is None:
        fit = choose_fit(request.init_img.values, request.fit, request.height, request.width)
        image = fit.of(request.init_img.values, run.model.size_multiple)
        frame = run.frame(*image.shape[:2])
        encoded = run.encode(image, frame)
    else:
        encoded = request.latents.values
        sides = (side * run.model.downsampling_factor for side in encoded.shape[-2:])
        frame = run.frame(*(request.latents.about or sides))
    for batch in run.each(frame, run.steps_of(request.strength)):
        x_t = batch.begin(batch.sample_posterior(encoded))  # (b, c, h, w)
        yield batch.done(batch.denoise(x_t, batch.cond()))


def load(request: Img2Img) -> Img2Img:
    """Return the request with its image or its latents read. Raises: InputError."""
    request = read_noise(request, finished=True)
    if request.latents is None:
        request = read_images(request)
        choose_fit(request.init_img.values, request.fit, request.height, request.width)
        return request
    if request.init_img is not None:
        raise InputError("--init-img and --latents both give the image to start from; use one of them")
    for flag, value in (("--fit", request.fit), ("--H", request.height), ("--W", request.width)):
        if value is not None:
            raise InputError(f"{flag} {value} cannot be combined with --latents, which have their own size")
    return request


TASK = Task(img2img, load=load)
