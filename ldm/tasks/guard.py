"""Never a black picture: look at every result, and compute again in float32 what is not finite.

float16 ends at 65,504. What passes it is infinity, a little later NaN, and saved it is black. So

    text encoder   is looked at after each encoding,
    UNet           after each step (x_t and x_0),
    autoencoder    after encoding and after decoding,
    others         after each use (unCLIP's image encoder, the depth network).

A look is a sum and one number to wait for. Where it is not finite, the weights and the arithmetic of that
network become float32 for the rest of the run, which goes on from the last good latents with the numbers that
were already drawn; a warning says so, and pictures remember it (`Guard.record`). Where float32 is not finite
either, the weights or the configuration are wrong: BadPictureError, and nothing is saved.

A picture may be finite and black all the same. `ldm.imaging.colour.is_black` is the rule, and whoever saves
pictures asks it (`ldm.cli.pictures`).
"""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldm.backends.device import autocast, network_dtypes
from ldm.diffusion.cond import Cond
from ldm.errors import BadPictureError, OutOfMemory, is_out_of_memory
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.samplers.base import Noise
from ldm.samplers.loop import KeyedNoise

logger = logging.getLogger(__name__)

T = TypeVar("T")

# network -> where a model keeps its weights
NETWORKS = {
    "text encoder": ("cond_stage_model",),
    "UNet": ("model", "control_model"),
    "autoencoder": ("first_stage_model",),
    "image encoder": ("embedder",),
    "depth network": ("depth_model",),
}
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class SampleState:
    """Where sampling stands: all that is needed to go on exactly.

    `sample_loop(sampler, denoise, state.x_t, cond, start=state.step, memory=state.memory)` goes on.
    """

    step: int  # the next step to take; the number of steps when all are done
    x_t: Tensor  # (b, c, h, w) latents before that step
    memory: tuple[Tensor, ...] = ()  # the sampler's, before that step
    widened: bool = False  # half precision had failed before: the UNet goes on in float32


class Guard:
    """Runs the networks of a model, each in its dtype, and in float32 from where that failed.

    Args:
        dtype: what was chosen; `ldm.backends.device.network_dtypes` says what it means for each network.

    Attributes:
        dtypes: what each network that the model has computes in now.
    """

    def __init__(self, model: LatentDiffusion, dtype: torch.dtype) -> None:
        self.model = model
        dtypes = network_dtypes(dtype, model.device)
        self.dtypes = {network: its for network, its in dtypes.items() if self._modules(network)}
        self._chosen = dtype
        self._widened: dict[str, str] = {}  # network -> what was before float32
        said = ", ".join(f"{network} {_name(its)}" for network, its in self.dtypes.items())
        logger.debug("dtypes: %s, attention logits float32 (reasons: ldm/backends/device.py)", said)
        for network in self.dtypes:
            self._fit_weights(network)

    def run(
        self,
        network: str,
        what: str,
        compute: Callable[[], T],
        parts: Callable[[T], list[Tensor]] = lambda result: [result],
        forget: Callable[[], None] = lambda: None,
    ) -> T:
        """Return the result of `compute`, which calls a network; in float32 if it is not finite otherwise.

        Args:
            network: a name of NETWORKS.
            what: what is done, for messages: "decoding".
            parts: returns the tensors of a result.
            forget: drops what `compute` kept of its failure.

        Raises:
            BadPictureError: it is not finite in float32 either.
            OutOfMemory: there is no room for float32.
        """
        while True:
            with self.computing(network):
                result = compute()
            if are_finite(*parts(result)):
                return result
            self.widen(network, what, *parts(result))
            forget()

    def apply_model(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Run the UNet as the model's `apply_model` does."""
        with self.computing("UNet"):
            return self.model.apply_model(x_t, t, self.fitting(cond))

    def fitting(self, cond: Cond) -> Cond:
        """Return what the UNet can take: no half precision, where it computes in float32."""
        if self.dtypes["UNet"] != torch.float32:
            return cond
        return cond.map(lambda x: x.float() if x.dtype in HALVES else x)

    @contextlib.contextmanager
    def computing(self, network: str) -> Iterator[None]:
        """Run the block in the dtype of a network."""
        try:
            with autocast(self.model.device, self.dtypes[network]):
                yield
        except Exception as error:
            if network in self._widened and is_out_of_memory(error):
                raise self._no_room(network) from error
            raise

    def widen(self, network: str, where: str, *values: Tensor, again: str = "done again in float32") -> None:
        """Let a network that gave `values`, which are not finite, compute in float32 from now on.

        Args:
            where: what was being done, for messages.
            again: what happens next, for messages.
        """
        got = "NaN" if any(bool(x.isnan().any()) for x in values) else "infinity"
        dtype = self.dtypes[network]
        if dtype == torch.float32:
            too = "" if self._chosen == torch.float32 else ", where half precision had failed before"
            raise BadPictureError(
                f"{where}: the {network} gave {got} in float32{too}; the picture is not saved. Do the "
                "weights hold NaN or fit another model (scripts/identify.py FILE), or does --config?"
            )
        self._in_float32(network, f"{_name(dtype)} gave {got} ({where})")
        logger.warning("%s: %s gave %s; %s", where, _name(dtype), got, again)

    def has_widened(self, network: str) -> bool:
        return network in self._widened

    def go_on(self, state: SampleState) -> None:
        """Compute as the run did that was stopped in `state`."""
        if state.widened and self.dtypes["UNet"] != torch.float32:
            self._in_float32("UNet", f"{_name(self.dtypes['UNet'])} gave NaN before the run was stopped")

    def record(self) -> dict[str, str]:
        """Return what each network computed in, for a picture to remember; empty if all as was chosen."""
        if set(self.dtypes.values()) == {self._chosen}:
            return {}
        why = {network: f", because {reason}" for network, reason in self._widened.items()}
        return {network: _name(dtype) + why.get(network, "") for network, dtype in self.dtypes.items()}

    def _in_float32(self, network: str, why: str) -> None:
        self._widened[network] = why
        self.dtypes[network] = torch.float32
        try:
            self._fit_weights(network)
        except Exception as error:
            if is_out_of_memory(error):
                raise self._no_room(network) from error
            raise

    def _fit_weights(self, network: str) -> None:
        """Convert weights in half precision where the network computes in a dtype that reaches farther.

        float32 weights stay as they are: autocast sees to them.
        """
        dtype = self.dtypes[network]
        for module in self._modules(network):
            stored = {weight.dtype for weight in module.parameters()}
            if stored.intersection(HALVES) - {dtype} and dtype != torch.float16:
                module.to(dtype)

    def _modules(self, network: str) -> list[nn.Module]:
        found = (getattr(self.model, name, None) for name in NETWORKS[network])
        return [module for module in found if isinstance(module, nn.Module)]

    def _no_room(self, network: str) -> OutOfMemory:
        weights = [weight for module in self._modules(network) for weight in module.parameters()]
        size = sum(4 * weight.numel() for weight in weights) / 1e9
        return OutOfMemory(
            f"out of memory: {self._widened[network]}, and there is no room for the {network} in float32, "
            f"{size:.2f} GB of weights alone; use --dtype bfloat16, a smaller --n_samples, --H or --W, "
            "or --device cpu"
        )


class KeptDraws:
    """A source of noise that gives a step the same numbers again when it is taken again."""

    def __init__(self, source: Noise | KeyedNoise) -> None:
        self.source = source
        self._step: int | None = None
        self._kept: dict[str, list[Tensor]] = {}  # purpose -> what was drawn in this step

    def at(self, i: int, purpose: str) -> Noise:
        if i != self._step:
            self._step, self._kept = i, {}
        kept = self._kept.setdefault(purpose, [])
        again = iter(list(kept))
        source = self.source.at(i, purpose) if hasattr(self.source, "at") else self.source

        def draw(x: Tensor) -> Tensor:
            eps = next(again, None)
            if eps is None:
                eps = source(x)
                kept.append(eps)
            return eps

        return draw


def are_finite(*values: Tensor) -> bool:
    """Look at every number, but wait for one: NaN and infinity survive a sum, which itself may overflow."""
    total = sum((x.sum(dtype=torch.float32) for x in values), torch.zeros(()))
    return math.isfinite(total) or all(bool(torch.isfinite(x).all()) for x in values)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
