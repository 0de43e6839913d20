"""Read, describe, convert and merge weights files: any container, LDM key names out.

    opened.py            open any of them: the tensors by part, memory-mapped, and their metadata
    sniff.py             what a file is, by its content and not by its name
    one_file.py          one file of any container, with errors in one line; folder.py: a diffusers folder
    safetensors_file.py  .safetensors
    pickle_file.py       .ckpt, .pt, .pth, .bin: torch's zip and the older format, without running any of it
    symbolic_pickle.py   what a pickle names and claims; pickle_stubs.py: stubs for the classes it mentions
    stored.py            the dtypes that files know; parts.py: the parts of a model; tensors.py: checks
    layouts/             key names to LDM's and to diffusers'
    identification.py    `identify`: describe a file or folder
    header.py            the names and shapes in a file, without its weights
    classify.py          what names, shapes and metadata mean; addons.py: LoRAs and the like, other families
    identity.py          the record of that, and the words for it
    delta.py             a model as its difference from another
    conversion.py        `convert`; convert.py writes the result, writer.py a .safetensors file
    merge.py             merge models

Importing this package imports no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.checkpoint.identity import Identity


def load_checkpoint(path: str | Path) -> "dict[str, Tensor]":
    """Return the tensors of a weights file or diffusers folder by their LDM key names, as stored.

    A training file's `state_dict` is unwrapped and everything that is no tensor dropped. Tensors are on the
    CPU, and views of the memory-mapped files wherever the format allows it: reading them takes no memory that
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
