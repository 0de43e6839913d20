"""Read the names, dtypes and shapes in a weights file, without the tensors and without torch.

Of a .safetensors file that is its header, of a .ckpt its pickle, interpreted symbolically.
The checks are those of loading, so what is refused there is refused here.
"""

from pathlib import Path
from typing import Any

from ldm.checkpoint.sniff import Container
from ldm.checkpoint.stored import Stored


def read_header(path: Path, container: Container) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the tensors of one file by name, in its order, and its metadata.

    Of a pickled file with a `state_dict` only that counts; in others a tensor's name is the path to it, with
    dots. Its metadata are the numbers and texts next to it, and as "holds" its other topmost keys.

    Raises:
        CheckpointError: as loading does.
    """
    if container is Container.SAFETENSORS:
        from ldm.checkpoint.safetensors_file import checked_header

        return checked_header(path)
    from ldm.checkpoint.pickle_file import check
    from ldm.checkpoint.symbolic_pickle import walk

    return _sorted_out(list(walk(check(path, container).content)))


def _sorted_out(found: list[tuple[tuple[str, ...], Any]]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Separate weights from everything else."""
    wrapped = any(keys[0] == "state_dict" for keys, _ in found if len(keys) > 1)
    tensors: dict[str, Stored] = {}
    metadata: dict[str, str] = {}
    for keys, leaf in found:
        if wrapped == (keys[:1] == ("state_dict",)) and isinstance(leaf, Stored):
            tensors[".".join(keys[1:] if wrapped else keys)] = leaf
        elif len(keys) == 1 and type(leaf) in (int, float, str) and len(str(leaf)) < 200:
            metadata[keys[0]] = str(leaf)
    weights = {"state_dict"} if wrapped else {keys[0] for keys, leaf in found if isinstance(leaf, Stored)}
    beside = {keys[0]: None for keys, _ in found if keys and keys[0] not in weights and len(keys) > 1}
    if beside:
        metadata["holds"] = ", ".join(beside)
    return tensors, metadata
