"""The base of all annotators: the size at which they look at an image, and the size of the map.

An image is resized before it is annotated so that its shorter side has `resolution` pixels, each side then
rounded to a multiple of 64 (half to even): with Lanczos if it is enlarged, by area if it is shrunk. That is
the rule of ControlNet's pages; networks find other edges and poses at other sizes.
"""

from typing import TYPE_CHECKING, Any

from ldm.errors import InputError
from ldm.requests.fields import integer, option, read_values

if TYPE_CHECKING:
    import numpy as np

MULTIPLE = 64           # of the sides of a resized image, in pixels
LONGEST = 16_384        # the longest side of one, in pixels


def _pixels(value: Any) -> int | None:
    return None if value == "own" else integer(MULTIPLE, 4096)(value)


class Annotator:
    """The base of all annotators; its subclasses are decorated by `request` and define `annotate`.

    Raises:
        InputError: the value of an option is invalid; the text names the option.
    """

    SECTION = ("options", "")
    IS_SMOOTH = True    # maps may be interpolated; those of few colours and thin lines take the nearest pixel
    resolution: int | None = option(
        None, "--resolution", metavar="N", read=_pixels, default_text="own",
        help="pixels of the shorter side at which the image is annotated, 64 to 4096; own: as it is",
    )  # fmt: skip

    def __post_init__(self) -> None:
        read_values(self)

    def __call__(self, image: "np.ndarray") -> "np.ndarray":
        """Return the map of an image, both (h, w, 3) uint8, of the same size.

        Raises:
            InputError: it is another array, or the annotator does not accept the image.
        """
        return resized(self.detect(image), image.shape[:2], self.IS_SMOOTH)

    def detect(self, image: "np.ndarray") -> "np.ndarray":
        """Return the map (h', w', 3) uint8 of an image (h, w, 3) uint8, at the detection resolution.

        Raises: as `__call__`.
        """
        if image.ndim != 3 or image.shape[2] != 3 or str(image.dtype) != "uint8" or not image.size:
            raise InputError(
                f"got an image of shape {image.shape} and {image.dtype}; expected (height, width, 3), uint8"
            )
        size = None if self.resolution is None else detection_size(image.shape[:2], self.resolution)
        return self.annotate(image if size is None else self.shrunk(image, size))

    def shrunk(self, image: "np.ndarray", size: tuple[int, int]) -> "np.ndarray":
        """Return the image resized for detection to (height, width)."""
        import cv2

        how = cv2.INTER_LANCZOS4 if min(size) > min(image.shape[:2]) else cv2.INTER_AREA
        return cv2.resize(image, size[::-1], interpolation=how)

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        """Return the map (h, w, 3) uint8 of an image (h, w, 3) uint8."""
        raise NotImplementedError


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
            "pixels per side: cut the image, or set a smaller --resolution, or --resolution own"
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
