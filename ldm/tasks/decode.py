"""Images from finished latents, without sampling."""

from collections.abc import Iterator

import torch

from ldm.imaging.padding import Frame
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.networks import networks_of
from ldm.tasks.batch import Batch
from ldm.tasks.latents import LatentsFile, expand_latents
from ldm.tasks.tiles import Tiling


def decode_latents(model: LatentDiffusion, file: LatentsFile, dtype: torch.dtype) -> Iterator[Batch]:
    """Decode the latents of one finished image, in float32 on the CPU to the same bits as when it was made.

    Some kernels round differently in batches of other sizes, so the image is decoded as it was: by itself
    (--exact, or where memory was short) or in its old place of a batch that is filled with copies of it, and
    in the tiles of its record.

    Raises: InputError where the latents do not fit the model.
    """
    record = file.record
    frame = Frame.around(record["height"], record["width"], model.size_multiple)
    tiling = Tiling(**record.get("tiling", {}))
    alone = tiling.one_by_one or record.get("resolved", {}).get("exact", False)
    count, index = (1, 0) if alone else (record["images_in_batch"], record["index_in_batch"])
    sides = (side // model.downsampling_factor for side in (frame.inner_height, frame.inner_width))
    latents = expand_latents(file.latents, count, (model.channels, *sides), count, model.device)
    networks = networks_of(model, dtype)
    networks.begin()
    images = frame.crop(networks.decode(latents, tiling.decoder_tile)).cpu()[index : index + 1]
    yield Batch(
        [record["prompt"]], images, latents[:1], record["iteration"], record["batch"], tiling=tiling,
        computed_in=networks.record(), offset=record["index_in_batch"],
    )  # fmt: skip
