"""Pictures from finished latents, without sampling."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import CONDITIONING_KEYS, LatentDiffusion
from ldm.tasks.latents import LatentsFile, rows
from ldm.tasks.sampling import Batch, Diffuser, Settings


def decode_latents(model: LatentDiffusion, file: LatentsFile, dtype: torch.dtype) -> Iterator[Batch]:
    """Decode the latents of one finished picture, in float32 on the CPU to the same bits as when it was made.

    Some kernels round differently in batches of other sizes, so the picture is decoded in its old place of a
    batch that is filled with copies of it.

    Raises: InputError where the latents do not fit the model.
    """
    record = file.record
    frame = Frame.around(record["height"], record["width"], model.size_multiple)
    count, index = record["images_in_batch"], record["index_in_batch"]
    diffuser = Diffuser(model, Settings(dtype=dtype), count, accepts=tuple(CONDITIONING_KEYS))
    latents = rows(file.latents, count, diffuser.latent_shape(frame), count, model.device)
    return _generate(diffuser, latents, frame, record, index)


def _generate(
    diffuser: Diffuser, latents: Tensor, frame: Frame, record: dict[str, Any], index: int
) -> Iterator[Batch]:
    images = diffuser.decode(latents, frame)[index : index + 1]
    prompt, iteration, number = record["prompt"], record["iteration"], record["batch"]
    done_in = diffuser.guard.record()
    yield Batch([prompt], images, latents[:1], iteration, number, computed_in=done_in, offset=index)
