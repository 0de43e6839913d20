"""Depth: white is near. It is estimated by MiDaS's DPT-hybrid (`ldm.models.midas`), or a given depth map.

    image / 127.5 - 1 at the detection resolution -> network -> inverse depth d
    map = 255 (d - min d) / (max d - min d), truncated

ControlNet's pages give the network the image at the detection resolution, 384 by default; depth-to-image
models resize it by MiDaS's own rule instead.
"""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ldm.annotators.base import MULTIPLE, NetworkAnnotator, as_rgb
from ldm.annotators.weights import content, read_tensors
from ldm.errors import CheckpointError, InputError, WrongModelError
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    from collections.abc import Callable
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

    @property
    def NEEDS_MULTIPLES(self) -> bool:
        return self.depth is None

    def prepare(self) -> None:
        _ = self.network if self.depth is None else self.given

    def fitted(self, fit: "Callable[[np.ndarray], np.ndarray]", size: tuple[int, int]) -> "Depth":
        return self if self.depth is None else replace(self, depth=fit(self._given_for(size)))

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
        return self._given_for(image.shape[:2])

    @cached_property
    def given(self) -> "np.ndarray":
        """The given inverse depth (h, w) float32, of its own size. Raises: InputError."""
        from ldm.imaging.depth import inverse_depth, read_depth

        return inverse_depth(self.depth if hasattr(self.depth, "shape") else read_depth(self.depth))

    def _given_for(self, size: tuple[int, int]) -> "np.ndarray":
        """Return the given inverse depth (h, w) float32 at the size (height, width) of the image."""
        import cv2

        depth = self.given
        (height, width), (h, w) = size, depth.shape
        is_rounded = height % MULTIPLE == width % MULTIPLE == 0
        allowed = max(0.2 * height * w, MULTIPLE // 2 * (h + w) if is_rounded else 0)
        if abs(height * w - width * h) > allowed:
            raise InputError(f"the given depth map is {w}x{h}, another aspect ratio than the image's")
        return cv2.resize(depth, (width, height), interpolation=cv2.INTER_LINEAR)

    def load(self, path: "Path") -> "nn.Module":
        from torch import nn

        from ldm.devices import on_meta
        from ldm.loading import load_part
        from ldm.models.midas import MiDaSInference

        holder = nn.Module()        # as a depth model holds it, so that the file may be one
        with on_meta():
            holder.depth_model = MiDaSInference()
        holder.to_empty(device="cpu")
        try:
            load_part(holder, path, "depth_model")
        except CheckpointError as error:
            found = content(read_tensors(path)) if path.is_file() else None
            if found is None or found.startswith(self.NETWORK):
                raise
            raise WrongModelError(f"{path} is {found}; expected MiDaS ({self.FILES[0]})") from error
        return holder.depth_model
