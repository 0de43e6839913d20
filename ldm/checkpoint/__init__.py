"""Read weights files: any published container in, tensors under published names out.

    sniff.py             what a file is, by its content and not by its name
    safetensors_file.py  .safetensors
    pickle_file.py       .ckpt, .pt, .pth: torch's zip and the older format, without running any of it
    stand_ins.py         inert things that take the place of classes a training file mentions
    tensors.py           which tensors are accepted
    guess.py             a sentence on what a set of weights is, for messages
    pages.py             hand memory-mapped pages back
"""

import logging
from pathlib import Path

from torch import Tensor

from ldm.checkpoint import pickle_file, safetensors_file
from ldm.checkpoint.sniff import Container, sniff
from ldm.checkpoint.tensors import only_tensors
from ldm.errors import CheckpointError, LdmError

logger = logging.getLogger(__name__)

READERS = {
    Container.SAFETENSORS: safetensors_file.read,
    Container.ZIP: pickle_file.read_zip,
    Container.PICKLE: pickle_file.read_legacy,
}


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file by their published names, on the CPU and as stored.

    A training file's `state_dict` is unwrapped and everything that is no tensor dropped. Tensors are views
    of the memory-mapped file wherever the format allows it: reading them costs no memory that the system
    cannot take back, and the file must not change while they live.

    Raises:
        UnsafeCheckpointError: it names something outside the allow-list; nothing of it was executed.
        CheckpointError: it is missing, no weights file, truncated or damaged.
    """
    path = Path(path).expanduser()
    try:
        container = sniff(path)
        return only_tensors(READERS[container](path), path)
    except LdmError:
        raise
    except Exception as error:      # the one border: whatever a library thinks of a broken file
        detail = (str(error).splitlines() or [""])[0][:120]
        reason = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
        raise CheckpointError(f"{path}: is truncated or damaged ({reason}); download it again") from error
