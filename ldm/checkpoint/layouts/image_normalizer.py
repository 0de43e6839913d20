"""unCLIP's statistics of image embeddings: diffusers' StableUnCLIPImageNormalizer <-> `noise_augmentor.*`.

Reference files leave these two out (they come from a file next to the configuration); ours may hold them.
"""

from ldm.checkpoint.layouts.renaming import Tensors, backward, forward, renamed

PAIRS = [("data_mean", "mean"), ("data_std", "std")]       # (1, width of the embedding)
WHAT = "the image normalizer"


def to_ldm(tensors: Tensors) -> Tensors:
    """Rename `mean` and `std` to the names below `noise_augmentor.`."""
    return renamed(tensors, forward(PAIRS), WHAT)


def to_diffusers(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Pick the statistics out of the noise augmentor; return also its noise schedule."""
    ours = backward(PAIRS)
    statistics = {name: x for name, x in tensors.items() if name in ours}
    return renamed(statistics, ours, WHAT), {name: x for name, x in tensors.items() if name not in ours}
