"""Annotators: what turns an image into the map that a ControlNet was trained on.

    edges = find("canny")(low=50)(image)            # (h, w, 3) uint8 RGB -> (h, w, 3) uint8

Each is one file: a frozen dataclass whose fields are its options (`ldm.requests.fields`), so that flags,
forms and records derive from it. To add one, write a file with a subclass of `base.Annotator` and add a row
to `KINDS`. Those with a network (`base.NetworkAnnotator`) read its weights from a file of the user.

Importing this package, or the file of an annotator, imports neither torch nor NumPy nor OpenCV.
"""

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ldm.errors import InputError, nearest

if TYPE_CHECKING:
    from ldm.annotators.base import Annotator

KINDS = {
    "canny": "edges, by Canny's detector",
    "sketch": "strokes as of a pen, by a difference of Gaussians",
    "scribble": "a drawing of dark lines on light ground, inverted",
    "depth": "depth, nearest white, estimated by MiDaS or given",
    "normal": "surface normals, from estimated or given depth",
    "hed": "soft edges, by the HED network",
    "softedge": "those in three levels",
    "fake_scribble": "those as strokes of a scribble",
    "openpose": "skeletons of people, by OpenPose",
    "blazepose": "skeletons of people, by BlazePose of the mediapipe package",
    "lsd": "line segments, by the LSD algorithm",
    "mlsd": "line segments, by the M-LSD network",
    "seg": "a segmentation map in the colours of ADE20K, checked",
    "shuffle": "the content of the image, shuffled by a random flow field",
    "tile": "the image without its finest details",
    "blur": "the image, blurred",
    "threshold": "white where the image is lighter than a threshold",
}
"""name of an annotator and of its module here -> what its map shows"""

CLASSES = {"lsd": "LSD", "mlsd": "MLSD"}  # where it is not the name with a capital
ALIASES = {
    "segmentation": "seg", "pose": "openpose", "lines": "lsd", "hough": "mlsd", "tile_resample": "tile",
    "scribble_xdog": "sketch", "scribble_hed": "fake_scribble", "soft_edge": "softedge",
    "softedge_hed_safe": "softedge", "softedge_hed": "hed",
}  # fmt: skip
"""other names of annotators: common words, and those of the pages of ControlNet and of A1111's web UI"""


def find(kind: str) -> "type[Annotator]":
    """Return the class of an annotator by its name or alias.

    Raises:
        InputError: there is no such annotator; the text lists all names.
    """
    name = name_of(kind)
    class_name = CLASSES.get(name, name.title().replace("_", ""))
    return getattr(importlib.import_module(f"ldm.annotators.{name}"), class_name)


def name_of(kind: str, others: Sequence[str] = ()) -> str:
    """Return the name of an annotator by its name or alias.

    Args:
        others: what may be given besides, for messages.

    Raises: as `find`.
    """
    name = kind.strip().lower().replace("-", "_").replace(" ", "_")
    name = ALIASES.get(name, name)
    if name not in KINDS:
        known, hint = (*others, *KINDS), nearest(name, [*others, *KINDS, *ALIASES])
        if "." in kind or "/" in kind:
            advice = f"write KIND:FILE, such as canny:{kind[:60]}"
            raise InputError(f"{kind[:60]!r} is a file without a kind; {advice}")
        raise InputError(f"unknown annotator {kind[:60]!r}: expected one of {', '.join(known)}{hint}")
    return name


def prepared(
    kind: str,
    settings: tuple[tuple[str, Any], ...] = (),
    resolution: int = 0,
    weights: str | None = None,
    device: str = "auto",
) -> "Annotator":
    """Return an annotator that is ready to run, with its network loaded.

    Args:
        settings: values of its options by name.
        resolution: pixels of the shorter side of what it sees; 0 is the image's own size.
        weights: file or folder of the weights of networks.

    Raises: InputError, CheckpointError.
    """
    from ldm.requests.fields import build, fields_of

    cls = find(kind)
    options: dict[str, Any] = {"resolution": resolution, "device": device}
    if weights is not None:
        options["annotator_weights"] = weights
    known = {name: value for name, value in options.items() if name in fields_of(cls)}
    made = build(cls, known | dict(settings))
    made.prepare()
    return made
