"""The helpers of the reference's `ldm.util` that other people's code calls."""

import logging
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ldm.config import instantiate
from ldm.published_names import PUBLISHED, resolve

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)


def instantiate_from_config(config: Any) -> Any:
    """Build the node `config` ({target, params}); see `ldm.config.instantiate`."""
    return instantiate(config, path="config")


def get_obj_from_str(string: str) -> Any:
    """Return the class or function of a dotted name, the reference's or today's."""
    return resolve(PUBLISHED.get(string, string))


def exists(x: Any) -> bool:
    """Tell whether `x` is given."""
    return x is not None


def default(x: Any, d: Any | Callable[[], Any]) -> Any:
    """Return `x` if it is given, else `d`, called if it is a function."""
    if x is not None:
        return x
    return d() if callable(d) else d


def count_params(model: "nn.Module", verbose: bool = False) -> int:
    """Return the number of parameters; `verbose` also logs it."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if verbose:
        logger.info("%s has %.2f M params", type(model).__name__, total / 1e6)
    return total


def ismap(x: Any) -> bool:
    """Tell whether `x` is a batch of maps: (b, c, h, w) with more than three channels."""
    return getattr(x, "ndim", 0) == 4 and x.shape[1] > 3


def isimage(x: Any) -> bool:
    """Tell whether `x` is a batch of images: (b, c, h, w) with one or three channels."""
    return getattr(x, "ndim", 0) == 4 and x.shape[1] in (1, 3)


def mean_flat(tensor: "Tensor") -> "Tensor":
    """Return the mean of each sample, (b,)."""
    return tensor.flatten(1).mean(1)


def log_txt_as_img(wh: Sequence[int], xc: Sequence[str], size: int = 10) -> "Tensor":
    """Draw captions in black on white images of (width, height): (b, 3, h, w) in -1..1."""
    import numpy as np
    import torch
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    columns = max(1, int(40 * wh[0] / 256))     # characters a line
    images = []
    for caption in xc:
        image = Image.new("RGB", tuple(wh), "white")
        text = textwrap.fill(caption, columns)
        ImageDraw.Draw(image).multiline_text((0, 0), text, fill="black", font=font)
        images.append(np.asarray(image, dtype=np.float32))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
