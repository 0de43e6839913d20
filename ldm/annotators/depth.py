"""Depth: white is near. It is estimated by MiDaS's DPT-hybrid (`ldm.models.midas`), or a given depth map.

    image / 127.5 - 1 at the detection resolution -> network -> inverse depth d
    map = 255 (d - min d) / (max d - min d), truncated

ControlNet's pages give the network the image at the detection resolution, 384 by default; depth-to-image
models resize it by MiDaS's own rule instead.
"""

from typing import TYPE_CHECKING, Any

from ldm.annotators.base import NetworkAnnotator, as_rgb
from ldm.annotators.weights import content, read_tensors
from ldm.errors import CheckpointError, InputError, WrongModelError
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import nn


@request(resolution=384)
class Depth(NetworkAnnotator):
    """The nearest is white, the farthest black."""

    NETWORK, FILES = "MiDaS", ("dpt_hybrid-midas-501f0c75.pt",)
    depth: Any = option(
        None, "--depth", metavar="FILE", is_file=True, default_text="",
        help="depth map of the image in which larger is nearer (PNG, TIFF, EXR, NPY, NPZ, PFM), instead of "
        "an estimate",
    )  # fmt: skip

    def prepare(self) -> None:
        if self.depth is None:
            super().prepare()

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        from ldm.imaging.depth import as_levels

        return as_rgb(as_levels(self.inverse_depth(image), bits=8))

    def inverse_depth(self, image: "np.ndarray") -> "np.ndarray":
        """Return inverse depth (h, w) float32 of an image (h, w, 3) uint8, given or estimated.

        Raises:
            InputError: the given map has another aspect ratio.
        """
        if self.depth is None:
            return self.run(image / 127.5 - 1)[0][0, 0].numpy()
        import cv2

        from ldm.imaging.depth import inverse_depth, read_depth

        depth = inverse_depth(self.depth if hasattr(self.depth, "shape") else read_depth(self.depth))
        (height, width), (h, w) = image.shape[:2], depth.shape
        if abs(height * w - width * h) > 0.2 * height * w:      # more than rounding to multiples of 64 makes
            raise InputError(f"the given depth map is {w}x{h}, another aspect ratio than the image's")
        return cv2.resize(depth, (width, height), interpolation=cv2.INTER_LINEAR)

    def load(self, path: "Path") -> "nn.Module":
        from torch import nn

        from ldm.devices import on_meta, resolve_device
        from ldm.loading import load_part
        from ldm.models.midas import MiDaSInference

        holder = nn.Module()        # as a depth model holds it, so that the file may be one
        with on_meta():
            holder.depth_model = MiDaSInference()
        holder.to_empty(device=resolve_device(self.device))
        try:
            load_part(holder, path, "depth_model")
        except CheckpointError as error:
            found = content(read_tensors(path)) if path.is_file() else None
            if found is None or found.startswith(self.NETWORK):
                raise
            raise WrongModelError(f"{path} is {found}; expected MiDaS ({self.FILES[0]})") from error
        return holder.depth_model
