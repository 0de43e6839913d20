"""The functions that other people's scripts import from the reference's scripts and from ControlNet's `cldm`.

    from scripts.txt2img import chunk, load_model_from_config, put_watermark
    from scripts.img2img import load_img
    from cldm.model import create_model, load_state_dict

Importing this file loads neither torch nor Pillow.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

logger = logging.getLogger(__name__)


def chunk(it: Iterable[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """Cut `it` into tuples of `size`; the last may be shorter."""
    from itertools import islice

    it = iter(it)
    return iter(lambda: tuple(islice(it, size)), ())


def put_watermark(img: "Image.Image", wm_encoder: Any = None) -> "Image.Image":
    """Return the RGB image with the mark of `wm_encoder`, an imwatermark.WatermarkEncoder, or as it is.

    An image that is too small for a mark is returned without one, with a warning.
    """
    import numpy as np
    from PIL import Image

    from ldm.imaging.watermark import MIN_PIXELS, fits

    if wm_encoder is None:
        return img
    rgb = np.asarray(img.convert("RGB"))
    if not fits(rgb):
        logger.warning("images under %d pixels cannot carry the watermark", MIN_PIXELS)
        return img
    bgr = wm_encoder.encode(np.ascontiguousarray(rgb[:, :, ::-1]), "dwtDct")
    return Image.fromarray(np.ascontiguousarray(bgr[:, :, ::-1]))


def load_model_from_config(
    config: Any, ckpt: str | Path, device: "str | torch.device" = "auto", verbose: bool = False
) -> "nn.Module":
    """Build the model of `config`, with its `model` node, and load the weights of `ckpt` in float32.

    It is in evaluation mode. As in the reference the UNet can be trained: its parameters take gradients.

    Args:
        device: "auto" is a GPU where there is one.
        verbose: log the number of parameters.

    Raises:
        WrongModelError: the weights do not fit the configuration.
    """
    from ldm.loading import load_model
    from ldm.util import count_params

    model = load_model(config, ckpt, device, "float32")
    model.model.requires_grad_(True)
    count_params(model, verbose=verbose)
    return model


def load_img(path: str | Path) -> "Tensor":
    """Return the image at `path` as (1, 3, h, w) in -1..1, its sides floored to multiples of 64."""
    import numpy as np
    import torch

    from ldm.imaging.files import open_image
    from ldm.imaging.fit import choose_fit

    image = np.asarray(open_image(path))
    fitted = choose_fit(image, "stretch").of(image, 64)
    logger.info("%s: %dx%d, used at %dx%d", path, *image.shape[1::-1], *fitted.shape[1::-1])
    return 2 * torch.from_numpy(fitted.astype(np.float32) / 255).permute(2, 0, 1)[None] - 1


def create_model(config_path: str | Path) -> "nn.Module":
    """Build the model of a configuration file on the CPU, with random weights."""
    from ldm.config import instantiate, load_config

    return instantiate(load_config(config_path).model, path=f"{config_path}: model").cpu()


def load_state_dict(ckpt_path: str | Path, location: "str | torch.device" = "cpu") -> "dict[str, Tensor]":
    """Return the tensors of a weights file on a device, for `model.load_state_dict`.

    Scripts say "cuda" whatever the machine; without such a GPU the tensors stay on the CPU.
    """
    import torch

    from ldm.checkpoint import load_checkpoint

    if torch.device(location).type == "cuda" and not torch.cuda.is_available():
        location = "cpu"
    return {name: tensor.to(location) for name, tensor in load_checkpoint(ckpt_path).items()}


def get_state_dict(d: dict[str, Any]) -> dict[str, Any]:
    """Return what a training file keeps under `state_dict`, or the dict itself."""
    return d.get("state_dict", d)


def disable_verbosity() -> None:
    """Let the library log nothing but errors."""
    logging.getLogger("ldm").setLevel(logging.ERROR)


def enable_sliced_attention() -> None:
    """Change nothing: attention here never builds the matrix of weights that slicing keeps small."""
    logger.debug("attention needs no slicing")
