"""Random numbers as a function of (seed, step, micro-batch, rank).

Every step seeds its generators from a hash of where it is. So the whole state of chance is the step
number: a resumed run draws what an uninterrupted one would have drawn, sampling in between changes nothing,
and ranks differ.
"""

import hashlib

import torch


def draw_seed(*where: int | str) -> int:
    """Return a 63-bit seed from the given numbers and words."""
    digest = hashlib.blake2b("/".join(map(str, where)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*where: int | str) -> torch.Generator:
    """Return a CPU generator seeded by `draw_seed(*where)`."""
    return torch.Generator().manual_seed(draw_seed(*where))
