"""The base of all annotators: the size at which they look at an image, and the size of the map.

An image is resized before it is annotated so that its shorter side has `resolution` pixels, each side then
rounded to a multiple of 64 (half to even): with Lanczos if it is enlarged, by area if it is shrunk. That is
the rule of ControlNet's pages; networks find other edges and poses at other sizes.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from ldm.annotators.weights import weights_file
from ldm.errors import InputError
from ldm.requests.fields import integer, option, read_values

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

MULTIPLE = 64           # of the sides of a resized image, in pixels
LONGEST = 16_384        # the longest side of one, in pixels


def _pixels(value: Any) -> int:
    return 0 if str(value) in ("0", "own", "None") else integer(MULTIPLE, 4096)(value)


class Annotator:
    """The base of all annotators; its subclasses are decorated by `request` and define `annotate`.

    Raises:
        InputError: the value of an option is invalid; the text names the option.
    """

    SECTION = ("annotator", "")
    NEEDS_MULTIPLES = False     # of 64 as sides, even at the image's own resolution
    READS_MAPS = False          # what is annotated has few colours; resized, it takes the nearest pixel
    IS_SMOOTH = True            # maps may be interpolated; else, of few colours, they take the nearest pixel
    resolution: int = option(
        0, "--resolution", "--detect-resolution", metavar="N", read=_pixels, default_text="{}",
        help="pixels of the shorter side at which the image is annotated, 64 to 4096; 0: as it is",
    )  # fmt: skip

    def __post_init__(self) -> None:
        read_values(self)

    def prepare(self) -> None:
        """Check and load what is needed besides an image, so that its lack is known before there is one.

        Raises: InputError, CheckpointError.
        """

    def fitted(self, fit: "Callable[[np.ndarray], np.ndarray]", size: tuple[int, int]) -> "Annotator":
        """Return the annotator for images that were cropped and resized.

        Args:
            fit: does the same to any array (h, w) of the image's former `size`, (height, width).
        """
        return self

    def release(self) -> None:
        """Free the memory of the device; the next image takes it again."""

    def __call__(self, image: "np.ndarray") -> "np.ndarray":
        """Return the map of an image, both (h, w, 3) uint8, of the same size.

        Raises:
            InputError: it is another array, or the annotator does not accept the image.
        """
        return self.finish(resized(self._detected(image), image.shape[:2], self.IS_SMOOTH))

    def detect(self, image: "np.ndarray") -> "np.ndarray":
        """Return the map (h', w', 3) uint8 of an image (h, w, 3) uint8, at the detection resolution.

        Raises: as `__call__`.
        """
        return self.finish(self._detected(image))

    def _detected(self, image: "np.ndarray") -> "np.ndarray":
        if image.ndim != 3 or image.shape[2] != 3 or str(image.dtype) != "uint8" or not image.size:
            raise InputError(
                f"got an image of shape {image.shape} and {image.dtype}; expected (height, width, 3), uint8"
            )
        resolution = self.resolution or (min(image.shape[:2]) if self.NEEDS_MULTIPLES else 0)
        size = detection_size(image.shape[:2], resolution) if resolution else image.shape[:2]
        return self.annotate(image if size == image.shape[:2] else self.shrunk(image, size))

    def shrunk(self, image: "np.ndarray", size: tuple[int, int]) -> "np.ndarray":
        """Return the image resized for detection to (height, width)."""
        import cv2

        how = cv2.INTER_LANCZOS4 if min(size) > min(image.shape[:2]) else cv2.INTER_AREA
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST if self.READS_MAPS else how)

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        """Return the map (h, w, 3) uint8 of an image (h, w, 3) uint8."""
        raise NotImplementedError

    def finish(self, edges: "np.ndarray") -> "np.ndarray":
        """Return what is made of a map (h, w, 3) uint8 at its final size."""
        return edges


class NetworkAnnotator(Annotator):
    """The base of annotators with a network, whose weights are read at the first image.

    Subclasses define `load`, and name the network and the files it was released in.
    """

    NEEDS_MULTIPLES = True
    NETWORK, FILES = "", ()
    annotator_weights: str | None = option(
        None, "--annotator-weights", metavar="FILE|FOLDER", is_file=True, default_text="",
        help="weights of the network, or a folder that contains them under their released name",
    )  # fmt: skip
    device: str = option(
        "auto", "--device", metavar="NAME", changes_image=False, help="where the network runs: cpu, cuda",
    )  # fmt: skip

    @cached_property
    def network(self) -> "nn.Module":
        """The network, on the CPU until it runs. Raises: InputError, CheckpointError."""
        return self.load(self.weights_file())

    def weights_file(self) -> "Path":
        """Return the file of the network's weights. Raises: InputError, CheckpointError."""
        return weights_file(self.annotator_weights, self.FILES, self.NETWORK)

    def prepare(self) -> None:
        _ = self.network

    def release(self) -> None:
        if "network" in vars(self):
            self.network.to("cpu")

    def load(self, path: "Path") -> "nn.Module":
        """Return the network with the weights of a file."""
        raise NotImplementedError

    def run(self, image: "np.ndarray") -> "tuple[Tensor, ...]":
        """Return what the network makes of an image (h, w, 3) of real numbers, on the CPU: (1, c, h', w')."""
        import torch

        from ldm.devices import resolve_device

        device = resolve_device(self.device)
        network = self.network.to(device)
        with torch.inference_mode():
            x = torch.from_numpy(image.transpose(2, 0, 1)[None].astype("float32")).to(device)
            found = network(x)
            return tuple(each.float().cpu() for each in (found if isinstance(found, tuple) else (found,)))


def detection_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """Return (height, width), multiples of 64, with a shorter side of about `resolution` pixels.

    Raises:
        InputError: the longer side becomes too long.
    """
    scale = resolution / min(size)
    height, width = (round(scale * side / MULTIPLE) * MULTIPLE for side in size)
    if max(height, width) > LONGEST:
        raise InputError(
            f"an image of {size[1]}x{size[0]} is annotated at {width}x{height}; expected at most {LONGEST} "
            "pixels per side: cut the image, or set a smaller --resolution, or 0"
        )
    return max(height, MULTIPLE), max(width, MULTIPLE)


def resized(image: "np.ndarray", size: tuple[int, int], smooth: bool) -> "np.ndarray":
    """Return a map (h, w, 3) at the size (height, width): linearly interpolated, or the nearest pixels."""
    import cv2

    if image.shape[:2] == tuple(size):
        return image
    how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    return cv2.resize(image, size[::-1], interpolation=how)


def as_rgb(grey: "np.ndarray") -> "np.ndarray":
    """Return a map (h, w), of truth values or uint8, as (h, w, 3) uint8; True is white."""
    import numpy as np

    grey = 255 * grey.astype(np.uint8) if grey.dtype == bool else grey
    return np.repeat(grey[..., None], 3, axis=2)
