"""Skeletons of people by BlazePose (arXiv 2006.10204), from the .tflite files of the mediapipe package.

    image, letterboxed to 224 -> 2254 boxes, each with a score, the middle of the hips and a point above it
    for each person: a square, turned upright, of 256 pixels -> 39 landmarks with their visibility, twice
    landmarks -> the 18 parts of OpenPose -> the drawing of `openpose`

It stands in for OpenPose's network: the wheel of mediapipe contains the weights, OpenVINO runs them, and
mediapipe itself is not imported. The numbers are those of mediapipe's graphs for these networks.
"""

import importlib.util
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.annotators.base import Annotator
from ldm.annotators.openpose import Peak, skeletons
from ldm.errors import BackendUnavailable, CheckpointError
from ldm.requests.fields import option, request

if TYPE_CHECKING:
    import numpy as np

DETECTOR, LANDMARKS = "pose_detection.tflite", "pose_landmark_full.tflite"
INSTALL = "pip install openvino; pip install --no-deps mediapipe==0.10.21"
SIDE, CROP = 224, 256           # of the input of both networks, in pixels
GRIDS = ((28, 2), (14, 2), (7, 6))      # cells per side, boxes in each
SCORE, OVERLAP = 0.5, 0.3       # of a person; of two boxes of the same person
MARGIN = 1.25                   # of the square around a person
HIPS = 33                       # landmark of the middle of the hips; the next is the point above it
VISIBLE = 0.5                   # share of certainty from which a landmark is drawn

# Landmarks of OpenPose's parts, 0 to 17; the neck is the middle of the shoulders.
PLACES = ((0,), (11, 12), (12,), (14,), (16,), (11,), (13,), (15,), (24,), (26,), (28,), (23,), (25,), (27,),
          (5,), (2,), (8,), (7,))  # fmt: skip


@dataclass(frozen=True)
class Square:
    """The square around a person: its middle and side in pixels, and by how much it is turned, in radians."""

    x: float
    y: float
    side: float
    turn: float

    def matrix(self) -> "np.ndarray":
        """Return what maps pixels of the crop to pixels of the image, (2, 3)."""
        import numpy as np

        scale = self.side / CROP
        turned = scale * np.array(
            [[math.cos(self.turn), -math.sin(self.turn)], [math.sin(self.turn), math.cos(self.turn)]]
        )
        middle = np.array([self.x, self.y]) - turned @ np.full(2, CROP / 2)
        return np.column_stack([turned, middle])


@request(resolution=512)
class Blazepose(Annotator):
    """Coloured skeletons on black, as those of OpenPose."""

    IS_SMOOTH = False
    annotator_weights: str | None = option(
        None, "--annotator-weights", metavar="FOLDER", is_file=True, default_text="the mediapipe package",
        help=f"folder with {DETECTOR} and {LANDMARKS}",
    )  # fmt: skip

    def prepare(self) -> None:
        _ = self.networks

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        return skeletons(self.people(image), image.shape[:2])

    def people(self, image: "np.ndarray") -> list[dict[int, Peak]]:
        """Return the parts of the people in an image (h, w, 3) uint8: 0 to 17 -> where, in pixels."""
        found = (self.parts(image, square) for square in self.squares(image))
        return [parts for parts in found if parts]

    def squares(self, image: "np.ndarray") -> list[Square]:
        """Return the squares around people, the most certain first."""
        import cv2
        import numpy as np

        height, width = image.shape[:2]
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        framed = np.zeros((side, side, 3), np.uint8)
        framed[top : top + height, left : left + width] = image
        small = cv2.resize(framed, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        boxes, logits = self.networks[0](small[None].astype(np.float32) / 127.5 - 1).values()
        return [
            around(points * side - [left, top]) for points in chosen(decoded(boxes[0]), logits[0, :, 0])
        ]

    def parts(self, image: "np.ndarray", square: Square) -> dict[int, Peak]:
        """Return the visible parts of the person in a square; none if there is nobody."""
        import numpy as np

        for _ in range(2):      # the landmarks show better than the box where the person is
            places, logits, presence = self.landmarks(image, square)
            if presence < SCORE:
                return {}
            square = around(places[HIPS : HIPS + 2])
        certain = 1 / (1 + np.exp(-logits.astype(np.float64)))
        parts = {}
        for part, numbers in enumerate(PLACES):
            (x, y), sure = places[list(numbers)].mean(axis=0), certain[list(numbers)].min()
            if sure > VISIBLE and 0 <= x < image.shape[1] and 0 <= y < image.shape[0]:
                parts[part] = Peak(int(x), int(y), float(sure))
        return parts

    def landmarks(self, image: "np.ndarray", square: Square) -> "tuple[np.ndarray, np.ndarray, float]":
        """Return the landmarks in a square in pixels (39, 2), logits of their visibility (39,), and presence.

        The image is smoothed before a large square of it becomes a small crop.
        """
        import cv2
        import numpy as np

        matrix, scale = square.matrix(), square.side / CROP
        smooth = cv2.GaussianBlur(image, (0, 0), scale / 3) if scale > 1 else image
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        crop = cv2.warpAffine(smooth, matrix, (CROP, CROP), flags=how)
        landmarks, presence, *_ = self.networks[1](crop[None].astype(np.float32) / 255).values()
        points = landmarks.reshape(-1, 5)       # x, y, z, visibility, presence
        return points[:, :2] @ matrix[:, :2].T + matrix[:, 2], points[:, 3], presence.item()

    @cached_property
    def networks(self) -> tuple[Any, Any]:
        """The detector and the network of landmarks. Raises: BackendUnavailable, CheckpointError."""
        folder = self._folder()
        files = [next(folder.rglob(name), None) for name in (DETECTOR, LANDMARKS)]
        if None in files:
            raise CheckpointError(f"--annotator-weights {folder}: BlazePose needs {DETECTOR} and {LANDMARKS}")
        try:
            import openvino
        except ImportError as error:
            raise BackendUnavailable(f"blazepose needs OpenVINO: {INSTALL}") from error
        core = openvino.Core()
        try:
            detector, landmarks = (core.compile_model(str(file), "CPU") for file in files)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{folder}: OpenVINO cannot read {DETECTOR} ({reason})") from error
        return detector, landmarks

    def _folder(self) -> Path:
        if self.annotator_weights is not None:
            return Path(self.annotator_weights)
        package = importlib.util.find_spec("mediapipe")
        if package is None:
            raise BackendUnavailable(f"blazepose reads the weights in the mediapipe package: {INSTALL}")
        return Path(package.submodule_search_locations[0]) / "modules"


def anchors() -> "np.ndarray":
    """Return the middles of the boxes (2254, 2), x and y in 0..1."""
    import numpy as np

    found = []
    for cells, count in GRIDS:
        middles = (np.arange(cells) + 0.5) / cells
        grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
        found.append(np.repeat(grid, count, axis=0))
    return np.concatenate(found)


def decoded(boxes: "np.ndarray") -> "np.ndarray":
    """Return boxes (n, 6, 2) in 0..1 of the network's (n, 12): middle, size, and four points, x and y."""
    points = boxes.reshape(-1, 6, 2) / SIDE
    points[:, [0, 2, 3, 4, 5]] += anchors()[:, None]
    return points


def chosen(boxes: "np.ndarray", logits: "np.ndarray") -> "list[np.ndarray]":
    """Return the middle of the hips and the point above it, (2, 2) in 0..1, of every person.

    Boxes of the same person are averaged, weighted by their scores.
    """
    import numpy as np

    scores = 1 / (1 + np.exp(-logits.astype(np.float64).clip(-100, 100)))
    order = [i for i in np.argsort(-scores) if scores[i] >= SCORE]
    people = []
    while order:
        same = [i for i in order if overlap(boxes[order[0]], boxes[i]) > OVERLAP] or order[:1]
        people.append(np.average(boxes[same], axis=0, weights=scores[same])[2:4])
        order = [i for i in order if i not in same]
    return people


def overlap(a: "np.ndarray", b: "np.ndarray") -> float:
    """Return the area that two boxes share, as a share of what they cover."""
    import numpy as np

    low, high = (np.stack([x[0] + sign * x[1] / 2 for x in (a, b)]) for sign in (-1, 1))
    shared = (high.min(axis=0) - low.max(axis=0)).clip(0).prod()
    return float(shared / max(a[1].prod() + b[1].prod() - shared, 1e-9))


def around(points: "np.ndarray") -> Square:
    """Return the square around a person, of the middle of the hips and the point above it, (2, 2)."""
    (x, y), (x_above, y_above) = points
    turn = math.pi / 2 - math.atan2(y - y_above, x_above - x)
    return Square(x, y, 2 * MARGIN * math.hypot(x_above - x, y_above - y), turn)
