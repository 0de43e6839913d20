"""What is built on the meta device has its shapes and no memory, and torch's compiler stays out."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from ldm.devices import on_meta

BUILD = """
import sys, torch
from torch import nn
from ldm.devices import on_meta
with on_meta():
    nn.Embedding(9, 4), nn.Conv2d(3, 4, 3), nn.MultiheadAttention(4, 2), nn.init.normal_(torch.empty(3))
print(*[name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


@pytest.mark.slow
def test_nothing_is_drawn_and_no_compiler_imported():
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_names_shapes_and_kinds_are_kept():
    def build() -> nn.Module:
        return nn.ModuleList([nn.Embedding(9, 4), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)])

    with on_meta():
        hollow = build()
    assert all(p.is_meta and p.requires_grad for p in hollow.parameters())
    expected = {name: (x.shape, x.dtype) for name, x in build().state_dict().items()}
    assert {name: (x.shape, x.dtype) for name, x in hollow.state_dict().items()} == expected


def test_weights_in_memory_are_drawn_all_the_same():
    drawn = torch.zeros(100, device="cpu")
    with on_meta():
        for draw in (drawn.normal_, drawn.uniform_):
            assert draw() is drawn and drawn.std() > 0
            drawn.zero_()
        nn.init.normal_(drawn)
    assert drawn.std() > 0
