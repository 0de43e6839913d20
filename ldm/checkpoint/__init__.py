"""Read weights files: any published container in, tensors under published names out.

    opened.py            open any of them: the tensors by part, mapped, and what is said about them
    sniff.py             what a file is, by its content and not by its name
    safetensors_file.py  .safetensors
    pickle_file.py       .ckpt, .pt, .pth, .bin: torch's zip and the older format, without running any of it
    folder.py            a diffusers folder
    stand_ins.py         inert things that take the place of classes a training file mentions
    tensors.py           which tensors are accepted
    identification.py    say what a file or folder is: `identify`
    header.py            the names and shapes in a file, without its weights
    classify.py          what names, shapes and labels mean; addons.py: LoRAs and the like, and other families
    identity.py          the record of that, and the words for it
    pages.py             hand memory-mapped pages back

Importing this package imports no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.checkpoint.identity import Identity


def load_checkpoint(path: str | Path) -> "dict[str, Tensor]":
    """Return the tensors of a weights file or diffusers folder by their published names, as stored.

    A training file's `state_dict` is unwrapped and everything that is no tensor dropped. Tensors are on the
    CPU, and views of the memory-mapped files wherever the format allows it: reading them costs no memory that
    the system cannot take back, and the files must not change while they live.

    Raises:
        UnsafeCheckpointError: it names something outside the allow-list; nothing of it was executed.
        CheckpointError: it is missing, no weights, truncated or damaged.
    """
    from ldm.checkpoint.opened import open_weights, to_ldm_names

    return to_ldm_names(open_weights(path))


def identify(path: str | Path) -> "Identity":
    """Return what a weights file or diffusers folder is, without reading its weights and without torch.

    Raises:
        CheckpointError: as loading does, but for NaN and infinite weights, which only reading them shows.
    """
    from ldm.checkpoint.identification import identify

    return identify(path)
