"""Exponential moving average of the weights, under its LDM buffer names.

    shadow <- shadow - (1 - d) (shadow - weight),    d = min(decay, (1 + n) / (10 + n)) in the n-th update

The shadow of the parameter `a.0.weight` is the buffer `a0weight`: a buffer's name may hold no dot.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ldm.errors import TrainingError


class LitEma(nn.Module):
    """Shadows of a module's trainable parameters, float32 at least."""

    decay: Tensor
    num_updates: Tensor

    def __init__(self, model: nn.Module, decay: float = 0.9999, use_num_updates: bool = True):
        """Start the shadows at the present weights.

        Args:
            decay: the part of the shadow that an update keeps, in [0, 1].
            use_num_updates: keep less in early updates, as above; otherwise always `decay`.
        """
        super().__init__()
        if not 0 <= decay <= 1:
            raise TrainingError(f"the decay of the moving average is {decay}: expected 0 to 1")
        self.register_buffer("decay", torch.tensor(decay, dtype=torch.float32))
        self.register_buffer("num_updates", torch.tensor(0 if use_num_updates else -1, dtype=torch.int32))
        self.shadow_names: dict[str, str] = {}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                shadow = name.replace(".", "")
                if shadow in self._buffers:
                    raise TrainingError(f"two moving averages would be called {shadow!r}: rename {name!r}")
                self.shadow_names[name] = shadow
                dtype = torch.promote_types(weight.dtype, torch.float32)
                self.register_buffer(shadow, weight.detach().to(dtype, copy=True))

    @torch.no_grad()
    def forward(self, model: nn.Module) -> None:
        """Move the shadows towards the weights of `model`, once for each optimiser step."""
        decay = float(self.decay)
        if self.num_updates >= 0:
            self.num_updates += 1
            n = int(self.num_updates)
            decay = min(decay, (1 + n) / (10 + n))
        weights = dict(model.named_parameters())
        for name, shadow in self.shadow_names.items():
            self._buffers[shadow].lerp_(weights[name].detach().to(self._buffers[shadow]), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the trainable weights of `model` with their shadows."""
        weights = dict(model.named_parameters())
        for name, shadow in self.shadow_names.items():
            weights[name].copy_(self._buffers[shadow])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Run a block with the shadows as weights, and put the weights back whatever happens in it."""
        weights = dict(model.named_parameters())
        kept = {name: weights[name].detach().clone() for name in self.shadow_names}
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in kept.items():
                    weights[name].copy_(weight)
