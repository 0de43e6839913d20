"""Conditioning: all that the UNet is given with x_t and t, as one value that can be batched.

    context    text, read by cross-attention
    concat     channels that are joined to x_t: a mask, a depth map, a small image
    label      added to the time embedding: a noise level, an image embedding
    controls   ControlNets (arXiv 2302.05543), each with the image that it follows

Every tensor has the batch first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ldm.errors import ConfigError, InputError

GUESS_DECAY = 0.825
NUM_CONTROLS = 13  # of every reference ControlNet; the scales of smaller ones count from the first

Network = Callable[..., Any]
Call = Callable[..., Any]  # (network, *arguments) -> result


def call_directly(network: Network, *args: Any, **kwargs: Any) -> Any:
    """Call a network as it is."""
    return network(*args, **kwargs)


@dataclass(frozen=True)
class Control:
    """A ControlNet, the image that it follows, and how strongly.

    Args:
        network: (x_t, hint, t, context) -> one residual for each skip of the UNet, then the middle's.
        hint: (b, 3, H, W) in [0, 1], of the size of the image.
        scale: of all residuals, or one for each, as many as there are or more, paired from the first.
        interval: (low, high), the training times t / (N - 1) at which it acts, 0 clean to 1 noise.
        guess: guess mode (section 3.6 of the paper's supplement): only the conditional half of guidance is
            controlled, and shallow residuals are weaker, GUESS_DECAY a level.
        pooled: each residual is replaced by its mean over the image (the shuffle model); such a ControlNet
            was trained to act on the conditional half alone.
    """

    network: Network
    hint: Tensor = field(compare=False)
    scale: float | tuple[float, ...] = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    guess: bool = False
    pooled: bool = False

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise InputError(f"control interval is {low:g},{high:g}: expected 0 <= LOW < HIGH <= 1")

    @property
    def is_conditional(self) -> bool:
        """Tell whether only the conditional half of guidance is controlled."""
        return self.guess or self.pooled

    def scales(self, count: int) -> tuple[float, ...]:
        """Return the scale of each of `count` residuals, shallowest first.

        Raises: ConfigError where fewer scales were given than there are residuals.
        """
        if not isinstance(self.scale, tuple):
            return control_scales(self.scale, self.guess, count)
        if len(self.scale) < count:
            raise ConfigError(
                f"control scale has {len(self.scale)} entries; expected {count}, one for each residual of "
                "the ControlNet, the middle's last"
            )
        return self.scale[:count]

    def residuals(
        self, x_t: Tensor, t: Tensor, context: Tensor | None, num_timesteps: int, call: Call = call_directly
    ) -> list[Tensor] | None:
        """Return what is added to the UNet's skips and, last, to its middle; None outside the interval.

        Args:
            x_t: (b, c, h, w) latents, without concatenated channels.
            t: (b,) training times, of `num_timesteps`.
        """
        inside = None
        if self.interval != (0.0, 1.0):
            inside = within(self.interval, t, num_timesteps)
            if not inside.any():
                return None
        found = call(self.network, x_t, self.hint, t, context)
        found = [r * scale for r, scale in zip(found, self.scales(len(found)), strict=True)]
        if self.pooled:
            found = [r.mean(dim=(2, 3), keepdim=True) for r in found]
        if inside is None or bool(inside.all()):
            return found
        return [torch.where(inside.view(-1, 1, 1, 1), r, 0.0) for r in found]  # samples at different times


@dataclass(frozen=True, eq=False)
class Cond:
    """What the UNet is given with x_t and t; see the module for its parts."""

    context: Tensor | None = None  # (b, n, width)
    concat: Tensor | None = None  # (b, c, h, w)
    label: Tensor | None = None  # (b,) or (b, width)
    controls: tuple[Control, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by their names, hints as "hint 1", ...; those that are None are left out."""
        named = {name: getattr(self, name) for name in ("context", "concat", "label")}
        named |= {f"hint {i}": control.hint for i, control in enumerate(self.controls, 1)}
        return {name: x for name, x in named.items() if x is not None}

    def count(self) -> int | None:
        """Return the number of samples that this describes; None where it is empty.

        Raises: InputError where its parts disagree.
        """
        sizes = {len(x) for x in self.tensors().values()}
        if len(sizes) > 1:
            parts = ", ".join(f"{name} {len(x)}" for name, x in self.tensors().items())
            raise InputError(f"the parts of a conditioning describe different numbers of samples: {parts}")
        return sizes.pop() if sizes else None

    def map(self, fn: Callable[[Tensor], Tensor]) -> "Cond":
        """Apply `fn` to every tensor."""
        context, concat, label = (
            None if x is None else fn(x) for x in (self.context, self.concat, self.label)
        )
        return Cond(context, concat, label, tuple(replace(c, hint=fn(c.hint)) for c in self.controls))

    def take(self, rows: slice | Sequence[int]) -> "Cond":
        """Return the conditioning of some samples of the batch."""
        return self.map(lambda x: x[rows])

    def join(self, other: "Cond") -> "Cond | None":
        """Return both along the batch, this one first; None where they have different ControlNets.

        Raises: InputError where one has a part that the other lacks, or of another shape.
        """
        if self.controls != other.controls:  # hints are not compared
            return None
        first, second = self.tensors(), other.tensors()
        if _shapes(first) != _shapes(second):
            raise InputError(
                f"the unconditional part is {_described(first)}, the conditional part {_described(second)}; "
                "expected the same parts, of shapes that differ at most in their batch"
            )
        both = {name: torch.cat([first[name], second[name]]) for name in first}
        controls = (replace(c, hint=both.pop(f"hint {i}")) for i, c in enumerate(self.controls, 1))
        return Cond(controls=tuple(controls), **both)

    def with_context_length(self, length: int) -> "Cond":
        """Cut the context to `length` tokens."""
        return self if self.context is None else replace(self, context=self.context[:, :length])

    def cropped(self, sides: tuple[int, int], rows: slice, columns: slice) -> "Cond":
        """Return the conditioning of a tile: `rows` and `columns` of latents of these sides (h, w).

        Raises: InputError for channels of other sides, or a hint whose sides are no multiple of them.
        """
        concat = self.concat
        if concat is not None:
            if concat.shape[-2:] != sides:
                raise InputError(f"channels {tuple(concat.shape)} with latents of {sides} cannot be tiled")
            concat = concat[..., rows, columns]
        controls = (replace(c, hint=_hint_of_tile(c.hint, sides, rows, columns)) for c in self.controls)
        return replace(self, concat=concat, controls=tuple(controls))


def control_scales(strength: float, guess: bool, count: int) -> tuple[float, ...]:
    """Return the scale of each residual: the same for all, or in guess mode smaller the shallower it is."""
    deepest = max(count, NUM_CONTROLS) - 1
    decay = GUESS_DECAY if guess else 1.0
    return tuple(strength * decay ** (deepest - i) for i in range(count))


def total_residuals(
    x_t: Tensor, t: Tensor, cond: Cond, num_timesteps: int, call: Call = call_directly
) -> list[Tensor] | None:
    """Return the sum of the residuals of all ControlNets; None where none acts at `t` (b,)."""
    found = (c.residuals(x_t, t, cond.context, num_timesteps, call) for c in cond.controls)
    total = None
    for residuals in found:
        if residuals is not None:
            total = residuals if total is None else [a + b for a, b in zip(total, residuals, strict=True)]
    return total


def within(interval: tuple[float, float], t: Tensor, num_timesteps: int) -> Tensor:
    """Return (b,) whether training times t (b,) lie in an interval of t / (N - 1), its ends included."""
    low, high = (edge * (num_timesteps - 1) for edge in interval)
    return (low <= t) & (t <= high)


def _hint_of_tile(hint: Tensor, sides: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    height, width = hint.shape[-2:]
    factor = height // sides[0]
    if (height, width) != (factor * sides[0], factor * sides[1]):
        raise InputError(f"a hint of {height}x{width} with latents of {sides} cannot be tiled")
    down, across = (slice(factor * s.start, factor * s.stop) for s in (rows, columns))
    return hint[..., down, across]


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape[1:]) for name, x in tensors.items()}


def _described(tensors: dict[str, Tensor]) -> str:
    return " and ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items()) or "empty"
