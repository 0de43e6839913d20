"""What the flags of scripts/depth2img.py mean together: a picture, its depth, and where the map is kept.

Everything that can be refused is refused here, before the model is loaded.
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli.inputs import read_init_image
from ldm.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from ldm.cli.latents import Start
    from ldm.cli.model import OpenedModel


@dataclass(frozen=True)
class Given:
    """What pictures are made of."""

    image: "np.ndarray | None"  # (h, w, 3) uint8
    depth: "np.ndarray | None"  # (h, w) inverse depth; None: the network's estimate
    size: tuple[int, int] | None  # (height, width) where there is no picture
    strength: float
    about: dict[str, Any]  # what a picture remembers of these


def read_given(args: argparse.Namespace, start: "Start") -> Given:
    """Return what --init-img, --depth, --depth-from, --H, --W and --strength say.

    Raises: InputError where they contradict each other or do not fit, or a run goes on with others.
    """
    from ldm.tasks.depth2img import check_size, chosen_strength

    _check_flags(args, start)
    image, about = None, {}
    if args.init_img:
        image, about["init_image"] = read_init_image(args)
    depth, about["depth"] = _read_depth(args)
    size = None if depth is None or image is not None else _size(args, depth.shape)
    if depth is not None:
        check_size(depth.shape, *(size or image.shape[:2]))
    if start.stopped is not None:
        for name, what in (("init_image", "picture"), ("depth", "depth map")):
            if start.stopped.record.get(name) != about.get(name):
                raise InputError(f"this is another {what} than {start.stopped.path} began with")
    strength = chosen_strength(image is not None, args.strength)
    return Given(image, depth, size, strength, about | {"strength": strength})


def open_network(args: argparse.Namespace, opened: "OpenedModel") -> None:
    """Load the depth network of --depth-ckpt."""
    if args.depth_ckpt is None:
        return
    from ldm.config import load_config
    from ldm.tasks.depth2img import load_depth_network

    node = load_config(opened.config).model.params.get("depth_stage_config")
    load_depth_network(opened.model, Path(args.depth_ckpt).expanduser(), node)


def keeper(args: argparse.Namespace, start: "Start", outdir: Path) -> "Callable[[np.ndarray], None] | None":
    """Return what keeps the map in DIR/depth; None without --save-depth, and where a stopped run did it."""
    if not args.save_depth or start.stopped is not None:
        return None
    from ldm.files.numbering import NumberedFiles
    from ldm.imaging.depth import png_of

    files = NumberedFiles(outdir / "depth", "%05d.png")
    return lambda depth: files.save(png_of(depth))


def _check_flags(args: argparse.Namespace, start: "Start") -> None:
    if start.latents is not None and start.stopped is None:
        raise InputError(f"--latents {args.latents} is of no stopped run, and this starts from nothing else")
    if "" in (args.init_img, args.depth):
        raise InputError("--init-img and --depth need the name of a file; got an empty one")
    if not (args.init_img or args.depth):
        raise InputError("give a picture (--init-img FILE), a depth map (--depth FILE), or both")
    if args.depth and (args.depth_from or args.depth_ckpt):
        other = "--depth-from" if args.depth_from else "--depth-ckpt"
        raise InputError(f"--depth and {other} both say where depth comes from; give one of them")
    if args.depth_invert and not args.depth:
        raise InputError("--depth-invert says what the values of --depth FILE are; give that too")
    if args.depth_from == "alpha" and args.depth_ckpt:
        raise InputError("--depth-from alpha needs no depth network; leave --depth-ckpt out")
    if args.depth_ckpt and not Path(args.depth_ckpt).expanduser().exists():
        raise InputError(f"--depth-ckpt {args.depth_ckpt}: there is no such file")
    if args.init_img and (args.H or args.W):
        raise InputError("--H and --W are for runs without --init-img; the result has the picture's size")


def _read_depth(args: argparse.Namespace) -> "tuple[np.ndarray | None, dict[str, Any]]":
    """Return inverse depth, None where the network is to estimate it, and what a picture remembers of it."""
    from ldm.imaging.depth import inverse_depth, read_depth

    if args.depth:
        path = Path(args.depth)
        values = read_depth(path)
        try:
            depth = inverse_depth(values, args.depth_invert)
        except InputError as error:
            raise InputError(f"--depth {path}: {error}") from error
        record = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        return depth, {"from": "file", **record, "invert": args.depth_invert}
    if args.depth_from == "alpha":
        import numpy as np

        from ldm.imaging.files import open_image
        from ldm.tasks.depth2img import alpha_depth

        try:
            alpha = np.asarray(open_image(args.init_img, alpha=True))[..., 3]
            return alpha_depth(alpha), {"from": "alpha"}
        except InputError as error:
            raise InputError(f"--depth-from alpha: {error}") from error
    network = {"file": Path(args.depth_ckpt).name} if args.depth_ckpt else {}
    return None, {"from": "network", **network}


def _size(args: argparse.Namespace, shape: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of pictures without --init-img."""
    h, w = shape
    height = args.H or (max(1, round(h * args.W / w)) if args.W else h)
    return height, args.W or max(1, round(w * height / h))
