"""What a training would do, told before it starts: the data, and estimates of memory and time.

One step is computed on the meta device, forwards and backwards, which needs neither memory nor weights: its
operations are counted, and the bytes of the tensors that are alive at once. How fast this machine multiplies
matrices then gives the time. The text encoder is not counted.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.backends.memory import Peak, free_bytes
from ldm.checkpoint import identify
from ldm.checkpoint.identity import Identity
from ldm.config import find_weights, instantiate
from ldm.devices import DTYPES, on_meta
from ldm.errors import ConfigError
from ldm.models.controlnet import HINT_FACTOR, ControlNet
from ldm.training.building import (
    Trained,
    build_data,
    check_side,
    choose_trained,
    device_of,
    precision_of,
)
from ldm.training.options import TrainOptions, parse_duration, read_sections
from ldm.training.seeding import generator
from ldm.wording import counted

WEIGHTS = ("ckpt", "control_ckpt", "first_stage_ckpt", "cond_stage_ckpt", "embedder_ckpt")
EXAMPLES, LONGEST = 3, 80   # captions that are shown, and characters of one
TOKENS = 77                 # of a caption
EFFICIENCY = 0.5            # of networks, against multiplying large matrices
MEASURED_FOR = 0.2          # seconds


def describe(config: dict[str, Any], deadline: float = 0.0) -> Iterator[str]:
    """Yield lines on what a resolved configuration trains: the data are opened, the networks stay empty.

    Args:
        deadline: seconds of --max-time; 0: none.
    """
    method, train, own = read_sections(config)
    with on_meta():
        model = instantiate(config["model"], "model")
    trained = model.model if method == "diffusion" else model
    if method == "diffusion":
        model.requires_grad_(False)
        choose_trained(trained, "model.", own.only)
    elif method == "control":
        trained = with_control(model, own)
    for name in WEIGHTS:
        if path := getattr(own, name, None):
            found = identify(find_weights(path))
            _check_width(model, found, f"{method}.{name} {path}")
            yield f"{name}: {found.sentence()}"
    data = build_data(config, "data")
    check_side(model, data, "data.params.size")
    yield _about(data, "data")
    if "val_data" in config:
        yield _about(val_data := build_data(config, "val_data"), "val_data")
        check_side(model, val_data, "val_data.params.size")
    if getattr(model, "cond_stage_model", None) is not None and hasattr(data, "check_captions"):
        data.check_captions()
    images, captions, *_ = data.batch(generator(train.seed, "data", 0, 0, 0), train.batch_size)
    shown = [repr(caption[:LONGEST]) for caption in list(dict.fromkeys(captions))[:EXAMPLES]]
    yield f"captions: {', '.join(shown)}"
    count = sum(x.numel() for x in model.parameters() if x.requires_grad)
    yield f"{method}: {count / 1e6:.1f} M parameters in {type(trained).__name__}"
    per_step = train.batch_size * train.accumulate * train.devices
    height, width = images.shape[-2:]
    many = f"{train.max_steps:,}" if train.max_steps else "no limit"
    if train.max_steps and hasattr(data, "__len__"):
        passes = train.max_steps * per_step / len(data)
        many += f", {passes:,.{0 if passes > 10 else 1}f} times through the data"
    yield f"steps: {many}; {counted(per_step, 'image')} of {width} x {height} in each"
    if method != "clip":
        yield from _costs(model, train, own, images, deadline)


def _check_width(model: nn.Module, found: Identity, what: str) -> None:
    """Refuse weights for another width of texts. Raises: ConfigError."""
    unet = getattr(getattr(model, "model", None), "diffusion_model", None)
    width = getattr(unet, "context_dim", None)
    if None not in (found.context_width, width) and found.context_width != width:
        raise ConfigError(
            f"{what}: is {found.sentence()}, of context width {found.context_width}; the UNet of the "
            f"configuration has {width}: give weights of its family, or another configuration"
        )


def with_control(model: nn.Module, own: Any) -> nn.Module:
    """Give a model a ControlNet, choose what is trained of the two, and return the ControlNet."""
    unet = model.requires_grad_(False).model.diffusion_model
    with on_meta():
        model.control_model = ControlNet.for_unet(unet, model.channels)
    choose_trained(Trained(model.control_model, None if own.sd_locked else unet), "", own.only)
    return model.control_model


def _about(data: Any, section: str) -> str:
    captions = getattr(data, "captions", None)
    with_text = f", {sum(map(bool, captions)):,} of them with a caption" if isinstance(captions, list) else ""
    return f"{section}: {counted(len(data), 'image') if hasattr(data, '__len__') else 'endless'}{with_text}"


def _costs(model: nn.Module, train: TrainOptions, own: Any, images: Tensor, deadline: float) -> Iterator[str]:
    """Yield the lines on memory and time."""
    operations, alive = step_costs(model, own, images)
    device, kind = device_of(train), DTYPES[precision_of(train)]
    every = sum(x.numel() for x in model.parameters())
    count = sum(x.numel() for x in model.parameters() if x.requires_grad)
    # Weights, Adam's two moments, and the EMA if there is one; float32 each. Gradients are in `alive`.
    kept = 4 * (every + count * (3 if own.ema_decay else 2))
    needed = kept + alive
    if kind.itemsize < 4:   # weights are copied to half precision; their gradients stay in float32
        needed = kept + (4 + kind.itemsize) * count + max(alive - 4 * count, 0) * kind.itemsize // 4
    free = free_bytes(device)
    there = "" if free is None else f"; {free / 2**30:.1f} GiB are free"
    parts = f"{kept / 2**30:.2f} GiB of it for weights and optimizer"
    yield f"memory: about {needed / 2**30:.2f} GiB in {precision_of(train)}, {parts}{there}"
    seconds = operations * train.accumulate / (EFFICIENCY * matrix_speed(device, kind))
    limit = min((each for each in (parse_duration(train.max_time), deadline) if each), default=0.0)
    steps = min((n for n in (train.max_steps, limit / seconds) if n), default=0.0)
    total = f", {spoken(steps * seconds)} for {counted(round(steps), 'step')}" if steps else ""
    each = f"{seconds:.2g} s" if seconds < 100 else spoken(seconds)
    yield f"time: roughly {each} a step on {device}{total}, without validation and samples"


def spoken(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.{0 if seconds > 10 * size else 1}f} {unit}"
    return f"{seconds:.0f} seconds"


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Compute attention without a matrix of all tokens on the meta device too, as every other device does."""
    usual = F.scaled_dot_product_attention

    def fused(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is not None:
            return usual(q, k, v, attn_mask=attn_mask)
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]

    F.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


def step_costs(model: nn.Module, own: Any, images: Tensor) -> tuple[int, int]:
    """Return the operations of one micro-batch, and the most bytes of tensors alive in it, in float32.

    Args:
        model: on the meta device.
        images: (b, 3, h, w), of which only the shape matters.

    Raises:
        ConfigError: the networks do not take images of this size.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        stack.enter_context(fused_attention())
        counted, peak = stack.enter_context(FlopCounterMode(display=False)), stack.enter_context(Peak())
        try:
            _one_step(model, own, torch.empty(images.shape))
        except RuntimeError as error:
            size = f"{images.shape[-1]} x {images.shape[-2]}"
            raise ConfigError(f"model: cannot be trained on images of {size}: {error}") from error
    return counted.get_total_flops(), peak.peak


def _one_step(model: nn.Module, own: Any, images: Tensor) -> None:
    if not hasattr(model, "apply_model"):
        reconstruction, posterior = model(images)
        ((images - reconstruction).abs().mean() + posterior.kl().mean()).backward()
        return
    if own.cache_latents:
        factor = model.downsampling_factor
        sides = images.shape[-2] // factor, images.shape[-1] // factor
    else:
        with torch.no_grad():
            sides = model.encode_first_stage(images).mean.shape[-2:]
    unet = model.model.diffusion_model
    for module in unet.modules():
        if own.gradient_checkpointing and hasattr(module, "use_checkpoint"):
            module.use_checkpoint = True
    unet.train()
    count, label = len(images), None
    if isinstance(unet.num_classes, int):
        label = torch.empty(count, dtype=torch.long)
    elif unet.num_classes is not None:  # its embedding begins with a linear layer
        linear = next(module for module in unet.label_emb.modules() if isinstance(module, nn.Linear))
        label = torch.empty(count, linear.in_features)
    context = torch.empty(count, TOKENS, unet.context_dim) if unet.context_dim else None
    x_t, t = torch.empty(count, unet.in_channels, *sides), torch.empty(count, dtype=torch.long)
    control = None
    if (network := getattr(model, "control_model", None)) is not None:
        hint = torch.empty(count, 3, *(HINT_FACTOR * side for side in sides))
        control = network.train()(x_t[:, : network.in_channels], hint, t, context)
    unet(x_t, t, context=context, y=label, control=control).mean().backward()


def matrix_speed(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """Return the operations a second of multiplying matrices on a device."""
    a = torch.ones(side, side, device=device, dtype=dtype)
    done, started = 0, time.monotonic()
    while done < 2 or time.monotonic() - started < MEASURED_FOR:
        float((a @ a)[0, 0])  # waits for the device
        done += 1
    return 2 * side**3 * done / (time.monotonic() - started)
