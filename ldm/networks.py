"""The networks of a model, each in its dtype and on its backend; no task calls a network but through this.

float16 ends at 65,504. Beyond it values become infinity, then NaN, and an image decoded from them is black.
So every result is checked:

    text encoder, image encoder, depth network, autoencoder    after each call, here
    UNet                                                       after each step, x_t and x_0, in ldm.tasks.run

The check is a sum and one number to wait for. If a result is not finite, the weights and the arithmetic of
that network become float32 for the rest of the run, and the call or the step is repeated; a warning says so,
and the images record it (`Networks.record`). The next run begins in the chosen dtypes again. If float32 is
not finite either, the weights or the configuration are wrong: BadImageError.

An image may be finite and black all the same: `ldm.imaging.colour.is_black` is checked when images are saved.
"""

import contextlib
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ldm.backends import Backend
from ldm.backends.eager import EAGER
from ldm.devices import HALVES, autocast, network_dtypes
from ldm.diffusion.cond import Cond, call_directly
from ldm.errors import BadImageError, OutOfMemory, is_out_of_memory
from ldm.models.gaussian import DiagonalGaussianDistribution
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.tiled_decoder import decode_tiled
from ldm.wording import script

logger = logging.getLogger(__name__)

T = TypeVar("T")

# network -> the attributes of a model that hold its weights
NETWORKS = {
    "text encoder": ("cond_stage_model",),
    "UNet": ("model", "control_model"),
    "autoencoder": ("first_stage_model",),
    "image encoder": ("embedder",),
    "depth network": ("depth_model",),
}

_made: "weakref.WeakKeyDictionary[LatentDiffusion, Networks]" = weakref.WeakKeyDictionary()


class Networks:
    """The networks of a model.

    A model has one object of this class (`networks_of`), which lives as long as the model and does not keep
    it alive.

    Args:
        dtype: the one that was chosen; `ldm.devices.network_dtypes` gives each network's own.
        backend: what runs the UNet and the ControlNets.
    """

    def __init__(self, model: LatentDiffusion, dtype: torch.dtype, backend: Backend = EAGER) -> None:
        self._model = weakref.ref(model)
        self.dtype = dtype
        self.backend = backend
        self._chosen = network_dtypes(dtype, model.device)
        self._upcast: dict[str, str] = {}  # network -> what was before float32
        self.controls: tuple[nn.Module, ...] = ()   # ControlNets of the run, which go with the UNet
        self._before: list[tuple[nn.Module, dict[str, torch.dtype]]] = []  # weights that were upcast
        self._prepared: dict[tuple, Callable[..., Any]] = {}
        model.model.call = call_directly if backend is EAGER else self._call
        said = ", ".join(f"{network} {_name(its)}" for network, its in self.dtypes.items())
        logger.debug("dtypes: %s, attention logits float32 (reasons: ldm/devices.py)", said)
        self.begin()

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """What each network that the model has computes in now."""
        there = {network: its for network, its in self._chosen.items() if self._modules(network)}
        return there | dict.fromkeys(self._upcast, torch.float32)

    @property
    def model(self) -> LatentDiffusion:
        model = self._model()
        if model is None:
            raise ReferenceError("the model of these networks no longer exists; keep it while they are used")
        return model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def text_encoder(self) -> nn.Module | None:
        return self.model.cond_stage_model

    # Calling

    def unet(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Run the UNet with its ControlNets, as the model's `apply_model`; the result is not checked."""
        if self.dtypes["UNet"] == torch.float32:
            cond = cond.map(lambda x: x.float() if x.dtype in HALVES else x)
        with self.computing("UNet"):
            return self.model.apply_model(x_t, t, cond)

    def text(self, tokens: Tensor, clip_skip: int | None = None, hidden: Tensor | None = None) -> Tensor:
        """Encode tokens (b, n) to the states (b, n, width) of the text encoder, in float32."""
        encode = self.model.cond_stage_model.encode_tokens
        what = "encoding the prompts"
        return self._checked("text encoder", what, lambda: encode(tokens, clip_skip, hidden))

    def text_of(self, prompts: list[str]) -> Tensor:
        """Encode prompts to their contexts (b, n, width), as the model does it itself, in float32."""
        encode = self.model.get_learned_conditioning
        return self._checked("text encoder", "encoding the prompts", lambda: encode(prompts))

    def encode(self, images: Tensor) -> DiagonalGaussianDistribution:
        """Encode images (b, 3, H, W) in [-1, 1] to the distribution of their unscaled latents."""
        images = images.to(self.device)

        def encode() -> Tensor:
            return self.model.encode_first_stage(images).parameters

        parameters = self._checked("autoencoder", "encoding the image", encode, to_float32=False)
        return DiagonalGaussianDistribution(parameters)

    def decode(self, latents: Tensor, tile: int | None = None) -> Tensor:
        """Decode scaled latents (b, c, h, w) to images, about [-1, 1], in float32.

        Args:
            tile: side of the decoder's tiles in latents, which give the same (`ldm.models.tiled_decoder`).
        """

        def decode() -> Tensor:
            if tile is None:
                return self.model.decode_first_stage(latents)
            return decode_tiled(self.model.first_stage_model, latents / self.model.scale_factor, tile)

        return self._checked("autoencoder", "decoding", decode)

    def image_embedding(self, images: Tensor) -> Tensor:
        """Encode images (b, 3, H, W) in [-1, 1] to their embeddings (b, D), in float32."""
        images = images.to(self.device)
        return self._checked("image encoder", "encoding the image", lambda: self.model.embedder(images))

    def depth(self, images: Tensor) -> Tensor:
        """Estimate the inverse depth (b, 1, h, w) of images (b, 3, H, W) in [-1, 1], in float32."""
        images = images.to(self.device)
        estimate = self.model.estimate_depth
        return self._checked("depth network", "estimating the depth", lambda: estimate(images))

    @contextlib.contextmanager
    def computing(self, network: str) -> Iterator[None]:
        """Run the block in the dtype of a network, without gradients."""
        try:
            with torch.no_grad(), autocast(self.device, self.dtypes[network]):
                yield
        except Exception as error:
            if network in self._upcast and is_out_of_memory(error):
                raise self._no_room(network) from error
            raise

    def _checked(
        self, network: str, what: str, compute: Callable[[], Tensor], to_float32: bool = True
    ) -> Tensor:
        """Return the result of `compute`, repeated in float32 if it is not finite.

        Args:
            what: what is done, for messages.

        Raises:
            BadImageError: it is not finite in float32 either.
            OutOfMemory: there is no room for float32.
        """
        while True:
            with self.computing(network):
                result = compute()
            if are_finite(result):
                return result.float() if to_float32 else result
            self.upcast(network, what, result)

    def _call(self, network: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Run a network on the backend, which prepares it for each shape of inputs."""
        if kwargs:  # those of the UNet, in the order of its parameters
            args = (*args, *(kwargs.pop(name, None) for name in ("context", "y", "control")))
            if kwargs:
                raise TypeError(f"backends do not pass on {', '.join(kwargs)} to a network")
        key = (id(network), self.dtypes["UNet"], *map(_shape, args))
        if key not in self._prepared:
            self._prepared[key] = self.backend.prepare(network, args)
        return self._prepared[key](*args)

    # Upcasting

    def begin(self) -> None:
        """Begin a run: what an earlier run had to upcast computes in its chosen dtype again."""
        for module, dtypes in self._before:
            for name, tensor in _named_tensors(module):
                tensor.data = tensor.data.to(dtypes[name])
        self._before, self._upcast = [], {}
        for network in self.dtypes:
            self._fit_weights(network)

    def upcast(self, network: str, where: str, *values: Tensor, again: str = "repeated in float32") -> None:
        """Let a network whose results `values` are not finite compute in float32 for the rest of the run.

        Args:
            where: what was being done, for messages.
            again: what happens next, for messages.

        Raises: BadImageError where it computes in float32 already; OutOfMemory.
        """
        got = "NaN" if any(bool(x.isnan().any()) for x in values) else "infinity"
        dtype = self.dtypes[network]
        if dtype == torch.float32:
            too = "" if self.dtype == torch.float32 else ", where half precision had failed before"
            raise BadImageError(
                f"{where}: the {network} gave {got} in float32{too}; the image is not saved. Check the "
                f"weights for NaN and that --config matches the file ({script('identify')} FILE)"
            )
        self._to_float32(network, f"{_name(dtype)} gave {got} ({where})")
        logger.warning("%s: %s gave %s; %s", where, _name(dtype), got, again)

    def has_upcast(self, network: str) -> bool:
        return network in self._upcast

    def resume_upcast(self) -> None:
        """Compute as an interrupted run did whose UNet had been upcast."""
        if self.dtypes["UNet"] != torch.float32:
            self._to_float32("UNet", f"{_name(self.dtypes['UNet'])} gave NaN before the run was interrupted")

    def record(self) -> dict[str, str]:
        """Return what each network computes in, for an image to record; empty if all as was chosen."""
        if set(self.dtypes.values()) == {self.dtype}:
            return {}
        why = {network: f", because {reason}" for network, reason in self._upcast.items()}
        return {network: _name(dtype) + why.get(network, "") for network, dtype in self.dtypes.items()}

    def _to_float32(self, network: str, why: str) -> None:
        self._upcast[network] = why
        stored = [
            (module, {name: x.dtype for name, x in _named_tensors(module)})
            for module in self._modules(network)
        ]
        try:
            self._fit_weights(network)
        except Exception as error:
            if is_out_of_memory(error):
                raise self._no_room(network) from error
            raise
        finally:
            self._before += stored

    def _fit_weights(self, network: str) -> None:
        """Convert weights in half precision where the network computes in a dtype of a wider range.

        float32 weights stay as they are: autocast sees to them.
        """
        dtype = self.dtypes[network]
        for module in self._modules(network):
            stored = {weight.dtype for weight in module.parameters()}
            if stored.intersection(HALVES) - {dtype} and dtype != torch.float16:
                module.to(dtype)

    def _modules(self, network: str) -> list[nn.Module]:
        found = (getattr(self.model, name, None) for name in NETWORKS[network])
        others = self.controls if network == "UNet" else ()
        return [module for module in (*found, *others) if isinstance(module, nn.Module)]

    def _no_room(self, network: str) -> OutOfMemory:
        weights = [weight for module in self._modules(network) for weight in module.parameters()]
        size = sum(4 * weight.numel() for weight in weights) / 1e9
        return OutOfMemory(
            f"out of memory: {self._upcast[network]}, and there is no room for the {network} in float32, "
            f"{size:.2f} GB of weights alone; use --dtype bfloat16, a smaller --n_samples, --H or --W, "
            "or --device cpu"
        )


def networks_of(
    model: LatentDiffusion, dtype: torch.dtype | None = None, backend: Backend | None = None
) -> Networks:
    """Return the networks of a model, made when they are first asked for or differ from what is asked.

    Args:
        dtype: None is that of the networks that were made before, else that of the UNet's weights.
        backend: None is that of the networks that were made before, else EAGER.
    """
    found = _made.get(model)
    if found is not None and dtype in (None, found.dtype) and backend in (None, found.backend):
        return found
    if dtype is None:
        dtype = next(model.model.parameters()).dtype if found is None else found.dtype
    if found is not None:
        found.begin()  # weights that were upcast go back
    _made[model] = Networks(model, dtype, backend or (EAGER if found is None else found.backend))
    return _made[model]


def are_finite(*values: Tensor) -> bool:
    """Check every number, but wait for one: NaN and infinity survive a sum, which itself may overflow."""
    total = sum((x.sum(dtype=torch.float32) for x in values), torch.zeros(()))
    return math.isfinite(total) or all(bool(torch.isfinite(x).all()) for x in values)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


def _shape(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return tuple(map(_shape, value)) if isinstance(value, (list, tuple)) else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
