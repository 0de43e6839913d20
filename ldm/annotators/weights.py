"""The weights of an annotator's network: a file of the user's, or the one in a folder; nothing is downloaded.

Files are read as all weights are (`ldm.checkpoint.opened`), without executing anything in them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import CheckpointError, InputError, WrongModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

# A name in a file, and what the file then is.
MARKS = {
    "block1.projection.weight": "HED (ControlNetHED.pth)",
    "netVggOne.0.weight": "HED (network-bsds500.pth)",
    "moduleVggOne.0.weight": "HED (network-bsds500.pth)",
    "conv5_1_CPM_L1.weight": "OpenPose's body network (body_pose_model.pth)",
    "model1_1.conv5_1_CPM_L1.weight": "OpenPose's body network (body_pose_model.pth)",
    "conv6_2_CPM.weight": "OpenPose's hand network (hand_pose_model.pth)",
    "block23.conv3.weight": "M-LSD (mlsd_large_512_fp32.pth)",
    "backbone.features.0.0.weight": "M-LSD, but not the large one",
    "pretrained.model.cls_token": "MiDaS (dpt_hybrid-midas-501f0c75.pt)",
}


def weights_file(given: str | None, names: tuple[str, ...], network: str) -> Path:
    """Return the file of a network's weights.

    Args:
        given: the value of --annotator-weights: the file, or a folder with a file of one of the names.
        names: file names under which the weights were released.
        network: what needs them, for messages.

    Raises:
        InputError: none is given.
        CheckpointError: there is no such file.
    """
    if given is None:
        raise InputError(
            f"{network} needs its weights: give --annotator-weights {' or '.join(names)}, or their folder "
            "(they are not downloaded)"
        )
    path = Path(given).expanduser()
    if not path.is_dir():
        return path
    for name in names:
        for found in (path / name, (path / name).with_suffix(".safetensors")):
            if found.is_file():
                return found
    raise CheckpointError(f"--annotator-weights {path}: {network} needs {' or '.join(names)} in this folder")


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Return the tensors of a file under the names stored. Raises: CheckpointError."""
    from ldm.checkpoint.opened import open_weights

    return open_weights(path).parts.get("", {})


def content(tensors: "Mapping[str, Tensor]") -> str:
    """Return what weights are, in a few words."""
    from ldm.loading.match import file_content

    return next((what for mark, what in MARKS.items() if mark in tensors), None) or file_content(tensors)


def fill(network: "nn.Module", tensors: "Mapping[str, Tensor]", path: Path, what: str) -> None:
    """Give a network on the meta device its weights, in float32 on the CPU, for inference.

    Args:
        tensors: under the names of the network.
        path: of their file; what: the network, both for messages.

    Raises:
        WrongModelError: the file is of another network; the text names both.
        BadValuesError: NaN or infinite weights.
    """
    import torch

    from ldm.loading.fill import fill_in
    from ldm.loading.match import match_keys

    keys = match_keys(network, tensors)
    if not keys.is_good:
        raise WrongModelError(f"{path} is {content(tensors)}; expected {what} ({keys.counts()})")
    keys.log_foreign(path)
    fill_in(network, keys, dict(tensors), torch.device("cpu"), torch.float32, path)
    network.eval().requires_grad_(False)
