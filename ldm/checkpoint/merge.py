"""Merge models: a weighted sum of two, or what one model learnt added to another.

    weighted-sum      M = (1 - alpha) A + alpha B            computed as A + alpha (B - A)
    add-difference    M = A + alpha (B - C)

Every value is computed in a wider type and rounded once, a stretch of a tensor at a time on all cores: half
precision in float32, whose error, 2**-23 of the larger operand, is a thousandth of that of rounding; float32
in float64. Where the difference is zero the bits of A stay, so A merged with itself is A, bit for bit. alpha
0 gives A, and alpha 1 of a weighted sum gives B.

In add-difference, A may have more input channels than B and C: inpainting + (custom - base) is an inpainting
model that draws in the custom style. The channels that only A has stay as they are.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint import identify
from ldm.checkpoint.identity import Identity
from ldm.checkpoint.layouts.averaged import averaged_names, with_averaged_weights
from ldm.checkpoint.opened import open_weights, to_ldm_names
from ldm.checkpoint.parts import EMA, PARTS, UNET, VAE
from ldm.checkpoint.tensors import is_finite
from ldm.checkpoint.writer import Entry
from ldm.devices import HALVES
from ldm.errors import BadValuesError, CheckpointError, InputError, WrongModelError
from ldm.wording import counted, script

MODES = ("weighted-sum", "add-difference")
PART_PREFIXES = {"unet": UNET, "vae": VAE, "text": PARTS["text_encoder"].prefix}
FIRST_CONV = UNET + "input_blocks.0.0.weight"
# Never averaged: the noise schedule (names without a dot), what the model computes by itself (masks and
# positions), and whole numbers.
COPIED = re.compile(r"[^.]+|.*\.(position_ids|attn_mask)")
USUAL = (None, "family")        # sources of what a model predicts that are no word of its own
EXAMPLES = 3
STRETCH = 1 << 19               # values computed at once: 2 MB in float32

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """A model that is read: one set of weights under LDM key names, still mapped."""

    path: Path
    tensors: Tensors
    weights: str                # "ema" or "raw": which set that is
    about: Identity
    files: list[Path]


@dataclass(frozen=True)
class Plan:
    """What will be written, and what a user should know of it."""

    entries: list[Entry]
    notes: list[str] = field(default_factory=list)


def read_source(path: str | Path, weights: str = "auto") -> Source:
    """Open a model in any layout.

    Args:
        weights: "raw", "ema" or "auto": raw.

    Raises:
        CheckpointError: it cannot be read, or lacks the weights asked for.
    """
    about = identify(path)
    opened = open_weights(path)
    tensors = to_ldm_names(opened)
    averaged = averaged_names(tensors)
    marked = opened.metadata.get("sd.weights")
    if weights == "ema" and marked != "ema":
        lacking = [name for name in averaged if name not in tensors]
        if not averaged or len(lacking) == len(averaged):
            raise CheckpointError(f"{path}: holds no EMA weights; use --weights raw")
        if lacking:
            count = len(lacking)
            raise CheckpointError(f"{path}: lacks {count} of its EMA weights; use --weights raw")
        tensors = with_averaged_weights(tensors)
    elif weights == "raw" and marked == "ema":
        raise CheckpointError(f"{path}: holds only EMA weights; use --weights ema")
    elif not averaged and any(name.startswith(EMA) for name in tensors):
        raise CheckpointError(f"{path}: contains only EMA weights whose parameter names cannot be recovered")
    tensors = {name: x for name, x in tensors.items() if not name.startswith(EMA)}
    kept = "ema" if weights == "ema" or marked == "ema" else "raw"
    return Source(Path(path), tensors, kept, about, opened.files)


def plan_merge(
    sources: Iterable[Source],
    alpha: float,
    mode: str = "weighted-sum",
    *,
    dtype: torch.dtype | None = None,
    parts: Sequence[str] | None = None,
    vae: Tensors | None = None,
) -> Plan:
    """Check that the models go together and return the entries of their merge; nothing is computed yet.

    Args:
        sources: A and B, and C for "add-difference".
        alpha: 0 to 1 in a weighted sum; any finite number in add-difference.
        dtype: of the floating-point results; None keeps the wider of the inputs' types.
        parts: which of PART_PREFIXES are merged, the rest is A's; None merges all.
        vae: what takes the place of the autoencoder, under LDM key names.

    Raises:
        InputError: alpha, mode, parts and the number of models do not go together.
        WrongModelError: the models are of different families, tasks or predictions.
        BadValuesError: later, by an entry: an input or the result is NaN or infinite.
    """
    sources = list(sources)
    _check_request(sources, alpha, mode, parts)
    doubts = _check_predictions(sources)
    notes = _check_models(sources, mode) + doubts
    a, *others = sources
    prefixes = None if parts is None else tuple(PART_PREFIXES[part] for part in parts)
    replaced = {} if vae is None else _checked_vae(a, vae)
    entries = []
    for name, tensor in a.tensors.items():
        if vae is not None and name.startswith(VAE):
            continue
        operands = [tensor, *(other.tensors[name] for other in others if name in other.tensors)]
        chosen = prefixes is None or name.startswith(prefixes)
        if not chosen or len(operands) < len(sources) or not _is_averaged(name, operands):
            entries.append(_copy(name, tensor, dtype, a.path))
        elif mode == "weighted-sum" and alpha == 1:
            entries.append(_copy(name, operands[1], dtype, others[0].path))
        elif alpha == 0:
            entries.append(_copy(name, tensor, dtype, a.path))
        else:
            entries.append(_blend(name, operands, alpha, mode, dtype, [source.path for source in sources]))
    entries += [_copy(name, tensor, dtype, "the autoencoder") for name, tensor in replaced.items()]
    return Plan(entries, notes)


def _check_request(sources: list[Source], alpha: float, mode: str, parts: Sequence[str] | None) -> None:
    if mode not in MODES:
        raise InputError(f"mode {mode!r}; expected {' or '.join(MODES)}")
    expected = 2 if mode == "weighted-sum" else 3
    if len(sources) != expected:
        raise InputError(f"{mode} takes {expected} models, got {len(sources)}")
    if not math.isfinite(alpha) or (mode == "weighted-sum" and not 0 <= alpha <= 1):
        raise InputError(f"alpha is {alpha}; expected {'0 to 1' if expected == 2 else 'a finite number'}")
    unknown = [part for part in parts or () if part not in PART_PREFIXES]
    if unknown:
        raise InputError(f"parts {', '.join(unknown)}; expected some of {', '.join(PART_PREFIXES)}")


def _check_predictions(sources: list[Source]) -> list[str]:
    """Refuse eps with v; return a note if that is unknown."""
    told = [source for source in sources if source.about.prediction]
    for a, b in pairwise(told):
        if b.about.prediction != a.about.prediction:
            raise WrongModelError(
                f"{a.path} predicts {a.about.prediction} and {b.path} predicts {b.about.prediction}; "
                "only models of the same prediction can be merged"
            )
    unknown = [source.path.name for source in sources if source.about.prediction is None]
    if not unknown:
        return []
    return [
        f"{', '.join(unknown)} does not say whether it predicts eps or v, and the two do not merge: make "
        f"sure of it ({script('identify')} --probe tells, for SD 1.x and 2.x)"
    ]


def _check_models(sources: list[Source], mode: str) -> list[str]:
    """Refuse models that do not go together; return notes on what they do not share."""
    a, *others = sources
    notes = []
    for b in others:
        own = {name for name in a.tensors if name.startswith(UNET)}
        theirs = {name for name in b.tensors if name.startswith(UNET)}
        # What an image-embedding model has beyond the plain one stays A's, like extra channels.
        if theirs - own or (own - theirs and (mode == "weighted-sum" or not theirs)):
            alone = counted(len(own ^ theirs), "tensor")
            raise _wrong_model(a, b, f"{alone} of the UNet in one of them only")
        for name in a.tensors.keys() & b.tensors.keys():
            x, y = a.tensors[name], b.tensors[name]
            extra = mode == "add-difference" and _has_extra_channels(name, x, y)
            if x.shape != y.shape and not extra:
                raise _wrong_model(a, b, f"{name} is {tuple(x.shape)} and {tuple(y.shape)}")
        notes += _lacking(a, b)
    if mode == "add-difference":
        notes += _check_difference(*sources)
    return notes


def _check_difference(a: Source, b: Source, c: Source) -> list[str]:
    for name in b.tensors.keys() & c.tensors.keys():
        if b.tensors[name].shape != c.tensors[name].shape:
            x, y = b.tensors[name], c.tensors[name]
            raise _wrong_model(b, c, f"{name} is {tuple(x.shape)} and {tuple(y.shape)}")
    wide, narrow = a.tensors.get(FIRST_CONV), b.tensors.get(FIRST_CONV)
    if wide is None or narrow is None or wide.shape == narrow.shape:
        return []
    channels, shared = wide.shape[1], narrow.shape[1]
    return [
        f"{a.path.name} has {channels} input channels, {b.path.name} and {c.path.name} {shared}: "
        f"the further {channels - shared} stay those of {a.path.name}"
    ]


def _has_extra_channels(name: str, x: Tensor, y: Tensor) -> bool:
    return (
        name == FIRST_CONV
        and x.ndim == y.ndim == 4
        and x.shape[1] > y.shape[1]
        and (x.shape[0], *x.shape[2:]) == (y.shape[0], *y.shape[2:])
    )


def _wrong_model(a: Source, b: Source, detail: str) -> WrongModelError:
    return WrongModelError(
        f"{a.path} is {a.about.sentence()}, and {b.path} is {b.about.sentence()}; "
        f"only models of one kind can be merged ({detail})"
    )


def _lacking(a: Source, b: Source) -> list[str]:
    """Say which tensors only one of two models has."""
    notes = []
    for one, other, what in ((a, b, f"kept from {a.path.name}"), (b, a, "left out")):
        names = [name for name in one.tensors if name not in other.tensors]
        if names:
            shown = ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
            notes.append(f"{len(names)} tensors that {other.path.name} lacks are {what}: {shown}")
    return notes


def _checked_vae(a: Source, vae: Tensors) -> Tensors:
    """Return the tensors of an autoencoder that fits A."""
    prefix = VAE
    modules = tuple(prefix + module for module in ("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    given = {name: x for name, x in vae.items() if name.startswith(modules)}
    if not given:
        raise WrongModelError("the file of --vae holds no autoencoder; give a model, or an autoencoder alone")
    for name, tensor in a.tensors.items():
        if name.startswith(prefix) and name in given and given[name].shape != tensor.shape:
            raise WrongModelError(
                f"the autoencoder of --vae does not fit {a.path}: {name} is "
                f"{tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
            )
    return given


def _is_averaged(name: str, operands: list[Tensor]) -> bool:
    return all(x.is_floating_point() for x in operands) and not COPIED.fullmatch(name)


def _copy(name: str, tensor: Tensor, dtype: torch.dtype | None, source: Path | str) -> Entry:
    """Return an entry that writes the tensor as it is."""
    dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

    def load() -> Tensor:
        if not COPIED.fullmatch(name):
            _check_input(name, tensor, source)
        return _checked_result(name, tensor.to(dtype))

    return Entry(name, dtype, tuple(tensor.shape), load)


def _blend(
    name: str, operands: list[Tensor], alpha: float, mode: str, dtype: torch.dtype | None, paths: list[Path]
) -> Entry:
    """Return an entry that computes one tensor of the merge."""
    a, high = operands[:2]
    dtype = dtype or reduce(torch.promote_types, (x.dtype for x in operands))

    def load() -> Tensor:
        for x, path in zip(operands, paths, strict=True):
            _check_input(name, x, path)
        shared = a if high.shape == a.shape else a[:, : high.shape[1]]
        low = shared if mode == "weighted-sum" else operands[2]
        is_half = all(each in HALVES for each in (dtype, *(x.dtype for x in operands)))
        mixed = _mix(shared, high, low, alpha, dtype, torch.float32 if is_half else torch.float64)
        if is_half and not is_finite(mixed):            # a difference may be too large for float32
            mixed = _mix(shared, high, low, alpha, dtype, torch.float64)
        if shared is not a:
            mixed = torch.cat([mixed, a[:, high.shape[1] :].to(dtype)], dim=1)
        return _checked_result(name, mixed)

    return Entry(name, dtype, tuple(a.shape), load)


def _mix(
    a: Tensor, high: Tensor, low: Tensor, alpha: float, dtype: torch.dtype, wide: torch.dtype
) -> Tensor:
    """Return a + alpha (high - low) computed in `wide`, a stretch at a time.

    A difference of zero gets the sign with which it leaves a negative zero of `a` as it is.
    """
    result = torch.empty(a.shape, dtype=dtype)
    a_flat, high_flat, low_flat = (x.reshape(-1) for x in (a, high, low))
    out = result.view(-1)
    for start in range(0, out.numel(), STRETCH):
        part = slice(start, start + STRETCH)
        x, up = a_flat[part].to(wide), high_flat[part].to(wide)
        down = x if low is a else low_flat[part].to(wide)
        out[part] = x.sub(down - up, alpha=alpha) if alpha > 0 else x.add(up - down, alpha=alpha)
    return result


def _check_input(name: str, tensor: Tensor, source: Path | str) -> None:
    if not is_finite(tensor):
        raise BadValuesError(f"{source}: {name} holds NaN or infinite values; such weights cannot be merged")


def _checked_result(name: str, tensor: Tensor) -> Tensor:
    if not COPIED.fullmatch(name) and not is_finite(tensor):
        raise BadValuesError(f"the merged {name} is too large for {tensor.dtype}; use --dtype float32")
    return tensor


def merge_metadata(
    sources: list[Source],
    alpha: float,
    mode: str,
    digests: Mapping[Path, str],
    *,
    parts: Sequence[str] | None = None,
    vae: str | None = None,
) -> dict[str, str]:
    """Return the metadata of the result: what A is, and the recipe as JSON under "sd.merge".

    Args:
        digests: the SHA-256 of each input file.
        vae: the name of the file that the autoencoder is from.
    """
    recipe = {
        "mode": mode,
        "alpha": alpha,
        "inputs": [
            {
                "name": source.path.name,
                "weights": source.weights,
                "sha256": {file.name: digests[file] for file in source.files},
            }
            for source in sources
        ],
        "parts": None if parts is None else list(parts),
        "vae": vae,
    }
    kinds = {source.weights for source in sources}
    abouts = [source.about for source in sources]
    about = {
        "sd.family": abouts[0].family,
        "sd.task": abouts[0].task,
        "sd.prediction": next((x.prediction for x in abouts if x.prediction_source not in USUAL), None),
        "sd.config": abouts[0].config,
        "sd.weights": "ema" if kinds == {"ema"} else "raw",
    }
    known = {key: text for key, text in about.items() if text is not None}
    return {"format": "pt", **known, "sd.merge": json.dumps(recipe)}
