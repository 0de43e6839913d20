"""Turn a configuration and a weights file into a model that is ready to run.

The network is built on the meta device, without memory. Each tensor of the file is then matched by name and
shape, converted on its own if it must be, and put in place; one that needs no conversion stays mapped from
the file. So the peak is the kept weights plus one tensor. Nothing is guessed: a tensor too many, too few or
of another shape is an error, but for the keys listed below by name, and what a module names itself as unused.
"""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.backends.device import resolve_device, resolve_dtype
from ldm.backends.meta import on_meta
from ldm.checkpoint.classify import V_MARK, classify, stated_predictions
from ldm.checkpoint.layouts import averaged
from ldm.checkpoint.opened import Opened, open_weights, published
from ldm.checkpoint.pages import ReadAhead, release_pages
from ldm.checkpoint.sniff import shown
from ldm.checkpoint.tensors import is_finite
from ldm.config import instantiate, load_config
from ldm.errors import BadValuesError, ConfigError, WrongModelError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]       # (bytes done, bytes in all)

SCHEDULE = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod"
    "|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod"
    "|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2"
)

UNREAD = "only CLIP's own training reads them"
ZERO_SNR_MARK = "ztsnr"

# Computed by the model itself; a file's copy is not read, and a file without them is whole.
COMPUTED = {
    SCHEDULE: "the configuration gives the noise schedule in float64; a half-precision file would degrade it",
    rf"(low_scale_model|noise_augmentor)\.({SCHEDULE})": "the same, of the noise on the conditioning",
    "logvar": "weights of the training loss; zeros in every published file",
    r"(.*\.)?text_model\.embeddings\.position_ids": "0..76; newer files leave it out, merges may round it",
}
# May be in a file although the model has no place for it.
SURPLUS = {
    SCHEDULE: COMPUTED[SCHEDULE],
    "lvlb_weights|logvar": "weights of the training loss",
    r"model_ema\.(decay|num_updates)": "counters of the averaging; every published .ckpt has them",
    r"model_ema\..*": "a second copy of the weights, averaged; which copy is used is logged",
    r"(first_stage_model\.)?loss\..*": "the discriminator that the autoencoder was trained against",
    r"first_stage_model\.model_ema\..*": "the averaged copy of the autoencoder",
    r"cond_stage_model\.model\.attn_mask": "the causal mask, computed by the model",
    r"cond_stage_model\..*\bembeddings\.position_ids": "0..76; under HF's name in converted SD 2.x",
    r"cond_stage_model\.(transformer\.)?(logit_scale|text_projection(\.weight)?)": UNREAD,
    f"{V_MARK}|{ZERO_SNR_MARK}": "empty marks of what the network was trained for",
}
# May be missing from a file although the model has a place for it; filled with zeros. A module adds to it by
# `unused_parameters()`: names of those that its forward pass never reads. All of them are there, or none.
UNUSED = {
    r"(cond_stage_model\.)?model\.(logit_scale|text_projection)": UNREAD,
}

PARTS = {
    "model.diffusion_model.": "the UNet",
    "first_stage_model.": "the autoencoder",
    "cond_stage_model.": "the text encoder",
    "model_ema.": "the averaged copy",
    "control_model.": "the ControlNet",
    "depth_model.": "the depth estimator",
    "embedder.": "the image encoder",
    "low_scale_model.": "the noise schedule of the small picture",
    "noise_augmentor.": "the noise schedule of the image embedding",
}
WEIGHTS = ("auto", "ema", "raw")
EXAMPLES = 3                    # names shown of each group
SCHEDULE_TOLERANCE = 2e-3       # half precision rounds alphas_cumprod by up to 5e-4


def load_model(
    config: Any,
    checkpoint: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    weights: str = "auto",
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> nn.Module:
    """Build the model of `config` with the weights of `checkpoint`, in evaluation mode and without gradients.

    Args:
        config: path of a YAML file, or what `load_config` returned; its `model` node is built.
        checkpoint: a .ckpt or .safetensors file, or a diffusers folder.
        device, dtype: as `resolve_device` and `resolve_dtype` take them; run it under `autocast` of the same.
        weights: "ema" takes the averaged copy and "raw" the weights proper, or fails; "auto" does what the
            configuration's `use_ema` says, and takes the averaged copy of a file that has nothing else.
        allow_nonfinite: only warn of NaN and infinite weights.
        progress: called with (bytes done, bytes in all) of the file after each tensor.

    Raises:
        WrongModelError: the file holds another model, or predicts otherwise, than the configuration says.
        BadValuesError: NaN or infinite weights.
        ConfigError, CheckpointError, BackendUnavailable: in one line, before anything was sampled.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights {weights!r}; expected one of {', '.join(WEIGHTS)}")
    started = time.perf_counter()
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    source = str(config) if isinstance(config, (str, Path)) else "the configuration"
    node = load_config(config) if isinstance(config, (str, Path)) else config
    if "target" not in node:
        if "model" not in node:
            raise ConfigError(f"{source}: has no 'model' node; expected model: {{target, params}}")
        node = node["model"]
    with on_meta():
        model = instantiate(node, path=f"{source}: model")
    file = Path(checkpoint)
    opened = open_weights(file)
    _check_prediction(model, opened, source)
    mark = opened.metadata.get("sd.weights")
    has_zero_snr = opened.configs.get("scheduler", {}).get("rescale_betas_zero_snr") is True
    tensors = _as_named_by(model, published(opened))
    del opened                      # what is converted is let go of, one tensor after the other
    _choose_average(model, tensors, weights, mark, file)
    _drop_absent_parts(model, tensors, file)
    fit = match(model, tensors)
    if not fit.is_good:
        raise WrongModelError(_refusal(fit, model, tensors, file, source))
    _warn_of_another_schedule(model, tensors, has_zero_snr, file)
    kept = _fill(model, fit, tensors, device, dtype, file, allow_nonfinite, progress)
    model.eval().requires_grad_(False)
    logger.info(
        "loaded %s in %.1f s: %d tensors, %.2f GB, %s on %s",
        file.name, time.perf_counter() - started, len(fit.matched), kept / 1e9, dtype, device,
    )
    return model


def load_part(
    model: nn.Module,
    path: str | Path,
    part: str = "first_stage_model",
    *,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Replace one part of a loaded model by that of a file, which may hold more; device and dtype stay.

    Args:
        part: the attribute of `model`: "first_stage_model", "cond_stage_model", ...

    Raises:
        WrongModelError: the file holds no such part, or one that does not fit; the model is as it was.
        BadValuesError, CheckpointError: as `load_model`.
    """
    file, prefix = Path(path), f"{part}."
    tensors = published(open_weights(file))
    what = PARTS.get(prefix, part)
    fit = match(model, {name: x for name, x in tensors.items() if name.startswith(prefix)}, prefix)
    if not fit.matched and not fit.misshapen:
        raise WrongModelError(f"{file} holds no weights of {what}: it is {_file_is(tensors)}")
    if not fit.is_good:
        raise WrongModelError(f"{file} does not fit {what} of the model: {fit.report()}")
    like = next(model.get_submodule(part).parameters())
    _fill(model, fit, tensors, like.device, like.dtype, file, allow_nonfinite, progress)
    logger.info("%s: %d tensors of %s", file.name, len(fit.matched), what)


@dataclass
class Fit:
    """How the names of a model and of a file agree."""

    matched: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)          # of UNUSED, missing from the file
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)      # "name (320, 9, 3, 3) instead of (320, 4, 3, 3)"

    @property
    def is_good(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def counts(self) -> str:
        """Say in one line how many tensors agree."""
        expected = len(self.matched) + len(self.missing) + len(self.misshapen)
        return (
            f"{expected} tensors expected: {len(self.matched)} matched, {len(self.missing)} missing, "
            f"{len(self.misshapen)} misshapen; {len(self.unexpected)} unexpected"
        )

    def report(self) -> str:
        """Say in one line what disagrees, with counts and by part of the model."""
        groups = [
            f"{what} {group}"
            for what, names in (
                ("missing", self.missing), ("misshapen", self.misshapen), ("unexpected", self.unexpected)
            )
            for group in _groups(names)
        ]
        return "; ".join([self.counts(), *groups])


def match(model: nn.Module, weights: Mapping[str, Tensor], prefix: str = "") -> Fit:
    """Compare the names, shapes and kinds of `weights` with what `model` stores below `prefix`."""
    fit = Fit()
    stored = {name: x for name, x in model.state_dict().items() if name.startswith(prefix)}
    stored |= {name: x for name, x in _optional_buffers(model).items() if name in weights}
    unused = _unused_parameters(model, weights)
    for name, place in stored.items():
        if _is_listed(name, COMPUTED):
            continue
        if name not in weights:
            (fit.zeros if name in unused or _is_listed(name, UNUSED) else fit.missing).append(name)
        elif weights[name].shape != place.shape:
            fit.misshapen.append(f"{name} {tuple(weights[name].shape)} instead of {tuple(place.shape)}")
        elif weights[name].is_floating_point() != place.is_floating_point():
            fit.misshapen.append(f"{name} {weights[name].dtype} instead of {place.dtype}")
        else:
            fit.matched.append(name)
    fit.unexpected = [name for name in weights if name not in stored and not _is_listed(name, SURPLUS)]
    return fit


def _as_named_by(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the prefix off where the configuration is of one part alone, such as an autoencoder."""
    names = model.state_dict().keys()
    if not names.isdisjoint(weights):
        return weights
    for prefix in PARTS:
        part = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
        if not names.isdisjoint(part):
            return part
    return weights


def _drop_absent_parts(model: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Set to None what a model can do without (`OPTIONAL_PARTS`) and a file holds nothing of."""
    for part in getattr(model, "OPTIONAL_PARTS", ()):
        if getattr(model, part) is not None and not any(name.startswith(f"{part}.") for name in weights):
            logger.warning("%s holds no weights of %s; it is left out", file.name, PARTS[f"{part}."])
            setattr(model, part, None)


def _optional_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that published files lack, and that are read where a file has them."""
    return {
        f"{path}.{name}" if path else name: getattr(module, name)
        for path, module in model.named_modules()
        for name in getattr(module, "OPTIONAL_BUFFERS", ())
    }


def _unused_parameters(model: nn.Module, weights: Mapping[str, Tensor]) -> set[str]:
    """Return what the modules of `model` name as unused, where a file has none of it.

    Folders in the diffusers layout have no place for such weights. A file with some of them is damaged.
    """
    unused: set[str] = set()
    for path, module in model.named_modules():
        if hasattr(module, "unused_parameters"):
            names = {f"{path}.{name}" if path else name for name in module.unused_parameters()}
            unused |= names if names.isdisjoint(weights) else set()
    return unused


def _refusal(fit: Fit, model: nn.Module, weights: Mapping[str, Tensor], file: Path, source: str) -> str:
    """Say what the file is, what the configuration asks for, what to do, and then what disagrees."""
    held = {next((part for part in PARTS if name.startswith(part)), None) for name in weights}
    file_is, model_is = _file_is(weights), _guess(model.state_dict())
    if held <= {"first_stage_model."}:
        advice = "give the whole model with --ckpt and this file with --vae"
        return f"{file} is {file_is}, but {source} asks for {model_is}: {advice}"
    if file_is == model_is:
        verdict = f"{file} does not fit {source}: both are {model_is}, so it is incomplete or of another size"
    else:
        verdict = f"{file} is {file_is}, but {source} asks for {model_is}"
        if len(fit.matched) < len(fit.missing) + len(fit.misshapen):    # another model: names tell no more
            return f"{verdict}; {fit.counts()}"
    return f"{verdict}; {fit.report()}"


def _file_is(weights: Mapping[str, Tensor]) -> str:
    held = {next((what for prefix, what in PARTS.items() if name.startswith(prefix)), "") for name in weights}
    alone = held.pop() if len(held) == 1 else ""
    return f"{alone} alone" if alone and alone != PARTS["model_ema."] else _guess(weights)


def _guess(weights: Mapping[str, Tensor]) -> str:
    return classify(
        {name: (str(x.dtype).removeprefix("torch."), tuple(x.shape)) for name, x in weights.items()}
    ).sentence()


def _is_listed(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _groups(names: list[str]) -> list[str]:
    """Group names by the part of the model that they belong to, with a count and a few examples."""
    groups: dict[str, list[str]] = {}
    for name in names:
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "no known part")
        groups.setdefault(part, []).append(name)
    return [
        f"{len(found)} of {part} ({', '.join([shown(name) for name in found[:EXAMPLES]] + ['...'] * more)})"
        for part, found in groups.items() for more in [len(found) > EXAMPLES]
    ]


def averaged_names(model: nn.Module) -> dict[str, str]:
    """Map each stored name of the averaged copy to the weight that it averages."""
    return averaged.averaged_names(name for name, _ in model.named_parameters())


def _choose_average(
    model: nn.Module, weights: dict[str, Tensor], choice: str, mark: str | None, file: Path
) -> None:
    """Let the averaged copy take the place of the raw weights, or not.

    Args:
        choice: of WEIGHTS.
        mark: what the file says it holds under the names of the weights proper: "ema", "raw", or None.
    """
    names = averaged_names(model)
    lacking = [copy for copy in names if copy not in weights]
    has_average = len(lacking) < len(names)
    has_raw = mark != "ema" and any(raw in weights for raw in names.values())
    if choice == "raw" and names and not has_raw:
        raise WrongModelError(f"{file}: holds only averaged (EMA) weights; leave --weights raw out")
    if choice == "ema" and lacking and mark != "ema":
        what = f"lacks {len(lacking)} of its" if has_average else "has no"
        raise WrongModelError(f"{file}: {what} averaged (EMA) weights; leave --weights ema out")
    if choice == "raw" or not has_average:
        return
    if choice == "auto" and has_raw and not getattr(model, "use_ema", False):
        logger.info("%s also holds averaged (EMA) weights; the raw ones are used (use_ema: false)", file.name)
    elif lacking:
        logger.warning("%s lacks %d of its averaged weights; the raw ones are used", file.name, len(lacking))
    else:
        reason = "as asked" if choice == "ema" else "use_ema: true" if has_raw else "the file has no others"
        logger.info("%s: the averaged (EMA) weights are used (%s)", file.name, reason)
        for copy, raw in names.items():
            weights[raw] = weights.pop(copy)


def _check_prediction(model: nn.Module, opened: Opened, source: str) -> None:
    """Refuse a file that says it predicts otherwise than the configuration does."""
    ours = getattr(model, "parameterization", None)
    names = opened.parts.get("", {})
    for _, words, theirs in stated_predictions(names, opened.metadata, opened.configs):
        if ours not in (None, theirs):
            raise WrongModelError(
                f"{opened.path} predicts {theirs} ({words}), but {source} says "
                f"parameterization: {ours}; give a configuration with parameterization: {theirs}"
            )


def _warn_of_another_schedule(
    model: nn.Module, weights: dict[str, Tensor], has_zero_snr: bool, file: Path
) -> None:
    stored, schedule = weights.get("alphas_cumprod"), getattr(model, "schedule", None)
    if schedule is None:
        return
    if (has_zero_snr or ZERO_SNR_MARK in weights) and not schedule.zero_terminal_snr:
        logger.warning("%s was trained to zero terminal SNR; the configuration's schedule is used", file.name)
    if stored is None:
        return
    ours = torch.as_tensor(schedule.alphas_cumprod).double()
    same_length = stored.shape == ours.shape
    if not same_length or (stored.double() - ours).abs().max() > SCHEDULE_TOLERANCE:
        logger.warning("%s was trained with another noise schedule; the configuration's is used", file.name)


def _fill(
    model: nn.Module,
    fit: Fit,
    weights: dict[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    file: Path,
    allow_nonfinite: bool,
    progress: Progress | None,
) -> int:
    """Put the matched tensors in place, one after the other; return the bytes that are kept."""
    kept = done = 0
    total = sum(weights[name].nbytes for name in fit.matched)
    spoilt = []
    tables = _optional_buffers(model)               # like the schedule's, they stay in full precision
    ahead = ReadAhead(weights[name] for name in fit.matched)
    ahead.go_on()
    for name in fit.matched:
        source = weights.pop(name)
        wanted = torch.float32 if name in tables else dtype
        placed = source.to(device, wanted if source.is_floating_point() else source.dtype).contiguous()
        if not is_finite(placed):
            spoilt.append(f"{name} ({int((~torch.isfinite(source)).sum())} of {source.numel()})")
        _place(model, name, placed)
        kept += placed.nbytes
        if placed.data_ptr() != source.data_ptr():
            release_pages(source)
        ahead.go_on(source)
        done += source.nbytes
        if progress is not None:
            progress(done, total)
    weights.clear()
    if spoilt:
        _report_nonfinite(spoilt, dtype, file, allow_nonfinite)
    stored = model.state_dict()
    for name in fit.zeros:
        _place(model, name, torch.zeros(stored[name].shape, dtype=dtype, device=device))
    for module in model.modules():
        if hasattr(module, "look_beside"):
            module.look_beside(file if file.is_dir() else file.parent)
        if hasattr(module, "materialise_buffers"):
            module.materialise_buffers(device)
    return kept


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _report_nonfinite(spoilt: list[str], dtype: torch.dtype, file: Path, allow: bool) -> None:
    more = f" and {len(spoilt) - EXAMPLES} more" if len(spoilt) > EXAMPLES else ""
    text = f"{file}: NaN or infinite weights as {dtype} in {', '.join(spoilt[:EXAMPLES])}{more}"
    if not allow:
        raise BadValuesError(f"{text}; the file is damaged, or needs another --dtype")
    logger.warning("%s; loaded all the same", text)
