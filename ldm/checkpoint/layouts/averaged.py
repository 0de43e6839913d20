"""Names of the EMA weights (EMA) in training files.

The copy of `model.diffusion_model.out.2.bias` is `model_ema.diffusion_modelout2bias`: a buffer's name may
hold no dot. That cannot be undone without a list of the names that may have been meant.
"""

from collections.abc import Iterable

from ldm.checkpoint.layouts.renaming import Tensors
from ldm.checkpoint.parts import EMA

WRAPPER = "model."                      # what is averaged lies below it
COUNTERS = (EMA + "decay", EMA + "num_updates")


def averaged_name(raw_name: str) -> str:
    """Return the name of the EMA weights of `model.X`."""
    return EMA + raw_name.removeprefix(WRAPPER).replace(".", "")


def averaged_names(raw_names: Iterable[str]) -> dict[str, str]:
    """Map the averaged name of each weight below `model.` to its raw name."""
    return {averaged_name(name): name for name in raw_names if name.startswith(WRAPPER)}


def with_averaged_weights(tensors: Tensors, raw_names: Iterable[str] | None = None) -> Tensors:
    """Put the EMA weights in the place of the raw weights; the copy and its counters are gone then.

    Args:
        raw_names: LDM key names that the copy may be of; None takes those that are there. A file that
            has only the copy needs them from a model of its configuration, built on the meta device.
    """
    known = averaged_names(tensors if raw_names is None else raw_names)
    raw = {name: x for name, x in tensors.items() if name not in known and name not in COUNTERS}
    return raw | {known[name]: x for name, x in tensors.items() if name in known}
