"""Write weights as one file or as a diffusers folder, tensor by tensor, and say what was kept and dropped.

    FILE                                FOLDER/
    model.diffusion_model.*             unet/config.json, diffusion_pytorch_model.safetensors
    first_stage_model.*                 vae/             likewise; controlnet/, image_normalizer/
    cond_stage_model.*                  text_encoder/config.json, model.safetensors; image_encoder/, ...
    (in the code)                       tokenizer/, scheduler/, feature_extractor/, model_index.json
    all else                            unused.safetensors, under its LDM key names

So a file comes back from its folder bit by bit. Tensors are cast, where that is asked for, when their turn
has come; the tables of the noise schedule never are, because half precision would spoil them.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import diffusers_configs as configs
from ldm.checkpoint.classify import of_no_part
from ldm.checkpoint.layouts import UNUSED, ldm_to_parts
from ldm.checkpoint.layouts.averaged import COUNTERS, averaged_name, with_averaged_weights
from ldm.checkpoint.parts import EMA, PARTS, UNET, part_of
from ldm.checkpoint.writer import Entry, write_safetensors
from ldm.errors import BadValuesError, InputError, WrongModelError
from ldm.files.atomic import atomic_folder

Tensors = dict[str, Tensor]
Progress = Callable[[int, int], None]           # (bytes done, bytes in all)
Amount = tuple[int, int]                        # (tensors, bytes)

COPIES = ("auto", "ema", "raw", "both")
TRAINING = re.compile(r"(first_stage_model\.)?loss\..*|first_stage_model\.model_ema\..*|lvlb_weights")
# Numbers of the noise schedules and counters: kept as they are, whatever --dtype says.
TABLES = re.compile(
    r"((low_scale_model|noise_augmentor)\.)?(betas|(sqrt_|log_)?(one_minus_)?(recip_|recipm1_)?alphas_cumprod(_prev)?)"
    r"|posterior_\w+|lvlb_weights|logvar|scale_factor|model_ema\.decay"
    r"|noise_augmentor\.data_(mean|std)|image_normalizer\.(mean|std)"
)
OTHERS = "noise schedule and others"
CONFIGS: dict[str, Callable[[configs.Params], configs.Json]] = {
    "unet": configs.unet, "vae": configs.vae, "text_encoder": configs.text_encoder,
    "controlnet": configs.controlnet, "image_encoder": configs.image_encoder,
    "image_normalizer": configs.image_normalizer, "depth_estimator": configs.depth_estimator,
}


@dataclass
class Converted:
    """What was written and what was not: part or reason -> (tensors, bytes)."""

    target: Path
    is_folder: bool
    kept: dict[str, Amount]
    dropped: dict[str, Amount] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def select(
    tensors: Tensors, copy: str, prune: bool, raw_names: Iterable[str] | None = None
) -> tuple[Tensors, dict[str, Amount]]:
    """Choose between raw and EMA weights, and leave out what only training needs.

    Args:
        tensors: by LDM key names.
        copy: of COPIES: which copy becomes the weights. "both" keeps the EMA and the raw weights;
            "auto" is that, or with `prune` the raw weights, or the EMA weights if there are no others.
        raw_names: LDM key names that the EMA weights may be of, for files that hold nothing else.

    Returns:
        what is left, and what was dropped by reason.

    Raises:
        WrongModelError: the copy asked for is not there, or not whole.
    """
    raw = {name: x for name, x in tensors.items() if name.startswith(UNET)}
    copies = {name: x for name, x in tensors.items() if name.startswith(EMA)}
    averaged = {name: x for name, x in copies.items() if name not in COUNTERS}
    if copy == "auto":
        copy = "both" if not prune else "raw" if raw or not averaged else "ema"
    if copy == "raw" and averaged and not raw:
        raise WrongModelError("there are only EMA weights; give --weights ema")
    dropped: dict[str, Amount] = {}
    if copy == "ema":
        lacking = [name for name, x in raw.items() if averaged_name(name) not in averaged]
        if lacking or not averaged:
            what = f"lacks {len(lacking)} weights, such as {lacking[0]}" if averaged else "is not there"
            raise WrongModelError(f"the EMA copy {what}; leave --weights ema out")
        dropped["raw weights, replaced by the EMA weights"] = amount(raw.values())
        tensors = with_averaged_weights(tensors, raw_names)
    elif copy == "raw":
        dropped["EMA weights"] = amount(copies.values())
        tensors = {name: x for name, x in tensors.items() if name not in copies}
    if prune:
        training = {name: x for name, x in tensors.items() if TRAINING.fullmatch(name)}
        dropped["needed for training only"] = amount(training.values())
        foreign = {name: tensors[name] for name in of_no_part(tensors)}
        dropped["of no part of the model"] = amount(foreign.values())
        left = training.keys() | foreign.keys()
        tensors = {name: x for name, x in tensors.items() if name not in left}
    return tensors, {reason: count for reason, count in dropped.items() if count[0]}


def write_file(
    target: Path,
    tensors: Tensors,
    metadata: dict[str, str],
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    sources: Iterable[Path] = (),
) -> Converted:
    """Write one .safetensors file; see `write_safetensors` for what stays where it fails.

    Args:
        dtype: what floating-point weights are cast to; None leaves each as it is.
    """
    check_target(target, is_folder=False, overwrite=overwrite)
    write_safetensors(target, _entries(tensors, dtype), metadata, progress=progress, sources=sources)
    kept: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        part = part_of(name)
        named = part is not None and (part.is_network or part.name == "ema")
        kept.setdefault(part.label if named else OTHERS, []).append(tensor)
    return Converted(target, False, {part: amount(held) for part, held in kept.items()}, metadata=metadata)


def write_folder(
    target: Path,
    tensors: Tensors,
    model: dict[str, Any],
    metadata: dict[str, str],
    *,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a folder that diffusers loads; one network alone becomes the folder of that part.

    Args:
        tensors: by LDM key names.
        model: the `params` of the configuration's `model` node.
        variant: goes into the names of the weights files, as in diffusion_pytorch_model.fp16.safetensors.

    Raises:
        ConfigError: diffusers has no word for something in the configuration.
    """
    check_target(target, is_folder=True, overwrite=overwrite)
    parts = ldm_to_parts(tensors)
    unused = parts.pop(UNUSED, {})
    texts = _texts(parts, model)
    total = sum(entry.nbytes for held in (*parts.values(), unused) for entry in _entries(held, dtype))
    kept = {part: amount(held.values()) for part, held in parts.items()}
    if unused:
        kept["what diffusers has no place for (unused.safetensors)"] = amount(unused.values())
    done = 0

    def fill(folder: Path) -> None:
        nonlocal done
        for name, text in texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for part, held in parts.items():
            stem = "model" if PARTS[part].of_transformers else "diffusion_pytorch_model"
            name = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
            place = folder / name if len(parts) == 1 else folder / part / name
            write(place, held, {"format": "pt"}, f"{part}.")
        if unused:
            write(folder / f"{UNUSED}.safetensors", unused, metadata)

    def write(place: Path, held: Tensors, said: dict[str, str], prefix: str = "") -> None:
        nonlocal done
        before = done
        entries = _entries(held, dtype, prefix)
        shown = progress and (lambda n, _: progress(before + n, total))
        write_safetensors(place, entries, said, progress=shown)
        done += sum(entry.nbytes for entry in entries)

    atomic_folder(target, fill)
    return Converted(target, True, kept, metadata=metadata)


def _texts(parts: dict[str, Tensors], model: dict[str, Any]) -> dict[str, str]:
    """Return the text of every file of the folder that holds no weights, by its path in the folder."""
    if len(parts) == 1:
        part = next(iter(parts))
        return {"config.json": configs.json_text(CONFIGS[part](model))}
    texts = {f"{part}/config.json": configs.json_text(CONFIGS[part](model)) for part in parts}
    schedulers = {"scheduler": configs.scheduler(model)}
    if "low_scale_config" in model:
        schedulers["low_res_scheduler"] = configs.low_res_scheduler(model)
    if "noise_aug_config" in model:
        schedulers["image_noising_scheduler"] = configs.image_noising_scheduler(model)
    texts |= {f"{name}/scheduler_config.json": configs.json_text(x) for name, x in schedulers.items()}
    if "text_encoder" in parts:
        texts |= {f"tokenizer/{name}": text for name, text in configs.tokenizer_files(model).items()}
    extractor = configs.feature_extractor(model)
    if extractor is not None:
        texts["feature_extractor/preprocessor_config.json"] = configs.json_text(extractor)
    there = {*parts, *(name.partition("/")[0] for name in texts)}
    return texts | {"model_index.json": configs.json_text(configs.model_index(model, there))}


def amount(tensors: Iterable[Tensor]) -> Amount:
    """Return how many tensors there are, and their bytes as stored."""
    sizes = [x.nbytes for x in tensors]
    return len(sizes), sum(sizes)


def _entries(tensors: Tensors, dtype: torch.dtype | None, prefix: str = "") -> list[Entry]:
    """Announce each tensor; `prefix` is that of a part whose names are not LDM's."""
    entries = []
    for name, x in tensors.items():
        is_weight = x.is_floating_point() and not TABLES.fullmatch(prefix + name)
        to = dtype if dtype is not None and is_weight else x.dtype
        entries.append(Entry(name, to, tuple(x.shape), partial(_cast, name, x, to)))
    return entries


def _cast(name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
    cast = x.to(dtype)
    if cast.dtype != x.dtype and not torch.isfinite(cast).all() and torch.isfinite(x).all():
        raise BadValuesError(
            f"{name}: values up to {x.abs().max():.3g} do not fit into {dtype}; give another --dtype"
        )
    return cast


def check_target(target: Path, *, is_folder: bool, overwrite: bool) -> None:
    """Refuse a target that is there, unless it may be overwritten; a folder must then be one of diffusers.

    Raises:
        InputError: in one line.
    """
    if not target.parent.is_dir():
        raise InputError(f"{target}: there is no folder {target.parent}; make it first")
    if not target.exists() and not target.is_symlink():
        return
    if not overwrite:
        raise InputError(f"{target} exists; give the result another name, or --overwrite")
    if is_folder:
        names = {path.name for path in target.iterdir()} if target.is_dir() else {"a file"}
        if names and not names & {"model_index.json", "config.json"}:
            raise InputError(f"{target} is no diffusers folder, so it stays; give the result another name")
