"""Skeletons of people by OpenPose's body network (arXiv 1611.08050; `ldm.models.body_pose`).

    heat maps        -> peaks: the candidates of each of 18 parts of the body       (section 2.2)
    affinity fields  -> links: which two candidates form a limb                     (section 2.3, eq. 10)
    links            -> people: limbs that share a candidate belong to one person   (section 2.4)

The network sees the image at half of 368 pixels of height, and its maps are enlarged to the image's size.
The numbers are those of ControlNet's page pose2image. Without people the map is black, and the log says so.
"""

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldm.annotators.base import NetworkAnnotator
from ldm.annotators.weights import fill, read_tensors
from ldm.requests.fields import request

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import nn

NECK, R_SHOULDER, R_ELBOW, R_WRIST, L_SHOULDER, L_ELBOW, L_WRIST = range(1, 8)
R_HIP, R_KNEE, R_ANKLE, L_HIP, L_KNEE, L_ANKLE, R_EYE, L_EYE, R_EAR, L_EAR = range(8, 18)
NOSE, PARTS = 0, 18

LIMBS = (   # (from, to, first of the two channels of its affinity field)
    (NECK, R_SHOULDER, 12), (NECK, L_SHOULDER, 20), (R_SHOULDER, R_ELBOW, 14), (R_ELBOW, R_WRIST, 16),
    (L_SHOULDER, L_ELBOW, 22), (L_ELBOW, L_WRIST, 24), (NECK, R_HIP, 0), (R_HIP, R_KNEE, 2),
    (R_KNEE, R_ANKLE, 4), (NECK, L_HIP, 6), (L_HIP, L_KNEE, 8), (L_KNEE, L_ANKLE, 10), (NECK, NOSE, 28),
    (NOSE, R_EYE, 30), (R_EYE, R_EAR, 34), (NOSE, L_EYE, 32), (L_EYE, L_EAR, 36),
    (R_SHOULDER, R_EAR, 18), (L_SHOULDER, L_EAR, 26),
)  # fmt: skip
DRAWN_LIMBS = 17            # the last two only join what there is: they are not drawn, and begin no person

COLOURS = (                 # RGB of the parts, and of the limbs in the same order
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
    (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
    (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
LIMB_BRIGHTNESS, WIDTH, RADIUS = 0.6, 4, 4     # of drawn limbs: half their width; of drawn parts; in pixels

HEIGHT = 0.5 * 368          # of the image that the network sees, in pixels
PAD = 128                   # level beyond its right and lower edge, up to a multiple of the stride
SMOOTHING = 3.0             # of the heat maps before peaks are sought, standard deviation in pixels
PEAK = 0.1                  # least value of a peak
SAMPLES, ALIGNED, SHARE = 10, 0.05, 0.8     # of a limb: more than this share of samples is aligned this well
FEWEST, LEAST_SCORE = 4, 0.4                # parts of a person, and mean score of each

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Peak:
    """A candidate for a part of the body: where it is, in pixels, and the heat there."""

    x: int
    y: int
    score: float


@dataclass
class Person:
    """The peaks of a person by part, 0 to 17, and the sums that decide whether it is one."""

    peaks: dict[int, Peak]
    score: float
    count: int


@request(resolution=512)
class Openpose(NetworkAnnotator):
    """Coloured skeletons on black."""

    IS_SMOOTH = False
    NETWORK, FILES = "OpenPose's body network", ("body_pose_model.pth",)

    def annotate(self, image: "np.ndarray") -> "np.ndarray":
        return skeletons([person.peaks for person in self.people(image)], image.shape[:2])

    def people(self, image: "np.ndarray") -> list[Person]:
        """Return the people in an image (h, w, 3) uint8."""
        fields, heats = self.maps(image)
        peaks = [find_peaks(heats[part]) for part in range(PARTS)]
        links = [
            find_links(peaks[a], peaks[b], fields[at : at + 2], image.shape[0]) for a, b, at in LIMBS
        ]
        return assemble(links)

    def maps(self, image: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
        """Return the affinity fields (38, h, w) and the heat maps (19, h, w) of an image (h, w, 3)."""
        import numpy as np

        from ldm.models.body_pose import STRIDE

        scale = HEIGHT / image.shape[0]
        small = scaled(image, tuple(max(int(scale * side), 1) for side in image.shape[:2]))
        height, width = small.shape[:2]
        margin = ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0))
        padded = np.pad(small[..., ::-1], margin, constant_values=PAD)
        found = []
        for maps in self.run(padded.astype(np.float32) / 256 - 0.5):
            large = [scaled(x, padded.shape[:2])[:height, :width] for x in maps[0].numpy()]
            found.append(np.stack([scaled(x, image.shape[:2]) for x in large]))
        return found[0], found[1]

    def load(self, path: "Path") -> "nn.Module":
        from ldm.devices import on_meta
        from ldm.models.body_pose import BodyPose, renamed

        with on_meta():
            network = BodyPose()
        tensors = renamed(read_tensors(path), network)
        fill(network, tensors, path, f"{self.NETWORK} ({self.FILES[0]})")
        return network


def scaled(image: "np.ndarray", size: tuple[int, ...]) -> "np.ndarray":
    """Return an image (h, w) or (h, w, 3) at the size (height, width): by area, or Lanczos to enlarge it."""
    import cv2

    shrinks = sum(size) < sum(image.shape[:2])
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LANCZOS4
    return cv2.resize(image, (size[1], size[0]), interpolation=how)


def find_peaks(heat: "np.ndarray") -> list[Peak]:
    """Return the peaks of a heat map (h, w), row by row: where it is no lower than at the four neighbours."""
    import cv2
    import numpy as np

    window = 2 * round(4 * SMOOTHING) + 1
    smooth = cv2.GaussianBlur(
        heat.astype(np.float64), (window, window), SMOOTHING, borderType=cv2.BORDER_REFLECT
    )
    around = np.pad(smooth, 1)
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    is_peak = (smooth > PEAK) & np.all([smooth >= each for each in neighbours], axis=0)
    return [Peak(int(x), int(y), float(heat[y, x])) for y, x in np.argwhere(is_peak)]


Link = tuple[Peak, Peak, float]


def find_links(starts: list[Peak], ends: list[Peak], field: "np.ndarray", height: int) -> list[Link]:
    """Return which peaks a limb joins, and how well: the best link first, and every peak in one link at most.

    Args:
        field: (2, h, w), the direction of the limb, x and y, where there is one.
        height: of the image; limbs longer than half of it are the less likely.
    """
    links = [(a, b, score) for a in starts for b in ends if (score := alignment(a, b, field, height)) > 0]
    found: list[Link] = []
    for a, b, score in sorted(links, key=lambda link: link[2], reverse=True):
        if not any(a is start or b is end for start, end, _ in found):
            found.append((a, b, score))
    return found


def alignment(a: Peak, b: Peak, field: "np.ndarray", height: int) -> float:
    """Return the mean of the field along the line between two peaks, less a share for its length; 0 if none.

    Equation 10, as a sum over `SAMPLES` points.
    """
    import numpy as np

    length = max(math.hypot(b.x - a.x, b.y - a.y), 0.001)
    xs, ys = (np.rint(np.linspace(*ends, SAMPLES)).astype(int) for ends in ((a.x, b.x), (a.y, b.y)))
    along = (field[0, ys, xs] * (b.x - a.x) + field[1, ys, xs] * (b.y - a.y)) / length
    if (along > ALIGNED).sum() <= SHARE * SAMPLES:
        return 0.0
    return float(along.mean()) + min(0.5 * height / length - 1, 0)


def assemble(links: list[list[Link]]) -> list[Person]:
    """Return the people that links, a list for each limb, join."""
    people: list[Person] = []
    for number, ((a, b, _), found) in enumerate(zip(LIMBS, links, strict=True)):
        for start, end, score in found:
            owners = [each for each in people if each.peaks.get(a) is start or each.peaks.get(b) is end]
            if len(owners) >= 2 and not owners[0].peaks.keys() & owners[1].peaks.keys():
                first, second = owners[:2]
                first.peaks |= second.peaks
                first.score += second.score + score
                first.count += second.count
                people = [each for each in people if each is not second]
            elif owners and (len(owners) >= 2 or owners[0].peaks.get(b) is not end):
                owners[0].peaks[b] = end
                owners[0].score += end.score + score
                owners[0].count += 1
            elif not owners and number < DRAWN_LIMBS:
                people.append(Person({a: start, b: end}, start.score + end.score + score, 2))
    return [each for each in people if each.count >= FEWEST and each.score / each.count >= LEAST_SCORE]


def skeletons(people: list[dict[int, Peak]], size: tuple[int, int]) -> "np.ndarray":
    """Return what `drawn` does, and say so if there is nobody."""
    if not people:
        log.warning("no person was found in the image: the map is black")
    return drawn(people, size)


def drawn(people: list[dict[int, Peak]], size: tuple[int, int]) -> "np.ndarray":
    """Return skeletons on black, (height, width, 3) uint8.

    Args:
        people: part of the body, 0 to 17 -> where it is, in pixels: attributes x and y, any real numbers.
    """
    import cv2
    import numpy as np

    canvas = np.zeros((*size, 3), np.uint8)
    for parts in people:
        for (a, b, _), colour in zip(LIMBS[:DRAWN_LIMBS], COLOURS, strict=False):
            if a in parts and b in parts:
                dim = [int(LIMB_BRIGHTNESS * level) for level in colour]
                cv2.fillConvexPoly(canvas, _limb(parts[a], parts[b]), dim)
        for part in range(PARTS):
            if part in parts:
                centre = int(parts[part].x), int(parts[part].y)
                cv2.circle(canvas, centre, RADIUS, COLOURS[part], thickness=-1)
    return canvas


def _limb(a: Peak, b: Peak) -> "np.ndarray":
    """Return the outline of an ellipse from one peak to another, (n, 2) in pixels."""
    import cv2

    length, angle = math.hypot(a.x - b.x, a.y - b.y), math.degrees(math.atan2(a.y - b.y, a.x - b.x))
    centre = int((a.x + b.x) / 2), int((a.y + b.y) / 2)
    return cv2.ellipse2Poly(centre, (int(length / 2), WIDTH), int(angle), 0, 360, 1)
