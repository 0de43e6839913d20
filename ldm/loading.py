"""Turn a configuration and a weights file into a model that is ready to run.

The network is built on the meta device, without memory. Each tensor of the file is then matched by name and
shape, converted on its own if it must be, and put in place; one that needs no conversion stays mapped from
the file. So the peak is the kept weights plus one tensor. Nothing is guessed: a tensor too many, too few or
of another shape is an error, but for the keys listed below by name.
"""

import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.backends.device import resolve_device, resolve_dtype
from ldm.checkpoint import load_checkpoint
from ldm.checkpoint.guess import guess
from ldm.checkpoint.pages import release_pages
from ldm.config import instantiate, load_config
from ldm.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

SCHEDULE = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod"
    "|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod"
    "|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2"
)

# Computed by the model itself; a file's copy is not read, and a file without them is whole.
COMPUTED = {
    SCHEDULE: "the configuration gives the noise schedule in float64; a half-precision file would degrade it",
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
    r"cond_stage_model\.transformer\.text_model\.embeddings\.position_ids": "0..76",
}
# May be missing from a file although the model has a place for it; filled with zeros.
UNUSED = {
    r"cond_stage_model\.model\.(logit_scale|text_projection)": "only CLIP's own training reads them",
}

PARTS = {
    "model.diffusion_model.": "the UNet",
    "first_stage_model.": "the autoencoder",
    "cond_stage_model.": "the text encoder",
    "model_ema.": "the averaged copy",
    "control_model.": "the ControlNet",
}
EXAMPLES = 3                    # names shown of each group
SCHEDULE_TOLERANCE = 2e-3       # half precision rounds alphas_cumprod by up to 5e-4


def load_model(
    config: Any,
    checkpoint: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    allow_nonfinite: bool = False,
) -> nn.Module:
    """Build the model of `config` with the weights of `checkpoint`, in evaluation mode and without gradients.

    Args:
        config: path of a YAML file, or what `load_config` returned; its `model` node is built.
        checkpoint: a .ckpt or .safetensors file in the published layout.
        device, dtype: as `resolve_device` and `resolve_dtype` take them; run it under `autocast` of the same.
        allow_nonfinite: only warn of NaN and infinite weights.

    Raises:
        ConfigError, CheckpointError, BackendUnavailable: in one line, before anything was sampled.
    """
    started = time.perf_counter()
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    source = str(config) if isinstance(config, (str, Path)) else "the configuration"
    node = load_config(config) if isinstance(config, (str, Path)) else config
    if "target" not in node:
        if "model" not in node:
            raise ConfigError(f"{source}: has no 'model' node; expected model: {{target, params}}")
        node = node["model"]
    with torch.device("meta"):
        model = instantiate(node, path=f"{source}: model")
    weights = load_checkpoint(checkpoint)
    _prefer_averaged(model, weights, Path(checkpoint))
    fit = match(model, weights)
    if not fit.is_good:
        raise CheckpointError(f"{checkpoint} does not fit {source}: {fit.report(model, weights)}")
    _warn_of_another_schedule(model, weights, Path(checkpoint))
    kept = _fill(model, fit, weights, device, dtype, Path(checkpoint), allow_nonfinite)
    model.eval().requires_grad_(False)
    logger.info(
        "loaded %s in %.1f s: %d tensors, %.2f GB, %s on %s",
        Path(checkpoint).name, time.perf_counter() - started, len(fit.matched), kept / 1e9, dtype, device,
    )
    return model


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

    def report(self, model: nn.Module, weights: dict[str, Tensor]) -> str:
        """Say in one line what disagrees, by part of the model, and what the file seems to be."""
        expected = len(self.matched) + len(self.missing) + len(self.misshapen)
        counts = (
            f"{expected} tensors expected: {len(self.matched)} matched, {len(self.missing)} missing, "
            f"{len(self.misshapen)} misshapen; {len(self.unexpected)} unexpected"
        )
        groups = [
            f"{what} {group}"
            for what, names in (
                ("missing", self.missing), ("misshapen", self.misshapen), ("unexpected", self.unexpected)
            )
            for group in _groups(names)
        ]
        file_is = guess({name: tuple(x.shape) for name, x in weights.items()})
        model_is = guess({name: tuple(x.shape) for name, x in model.state_dict().items()})
        verdict = f"the file looks like {file_is}, the configuration describes {model_is}"
        if file_is == model_is:
            verdict = f"both look like {file_is}, so the file is incomplete or of another size"
        return "; ".join([counts, *groups, verdict])


def match(model: nn.Module, weights: dict[str, Tensor]) -> Fit:
    """Compare the names, shapes and kinds of `weights` with what `model` stores."""
    fit = Fit()
    stored = model.state_dict()
    for name, place in stored.items():
        if _is_listed(name, COMPUTED):
            continue
        if name not in weights:
            (fit.zeros if _is_listed(name, UNUSED) else fit.missing).append(name)
        elif weights[name].shape != place.shape:
            fit.misshapen.append(f"{name} {tuple(weights[name].shape)} instead of {tuple(place.shape)}")
        elif weights[name].is_floating_point() != place.is_floating_point():
            fit.misshapen.append(f"{name} {weights[name].dtype} instead of {place.dtype}")
        else:
            fit.matched.append(name)
    fit.unexpected = [name for name in weights if name not in stored and not _is_listed(name, SURPLUS)]
    return fit


def _is_listed(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _groups(names: list[str]) -> list[str]:
    """Group names by the part of the model that they belong to, with a count and a few examples."""
    groups: dict[str, list[str]] = {}
    for name in names:
        part = next((part for prefix, part in PARTS.items() if name.startswith(prefix)), "no known part")
        groups.setdefault(part, []).append(name)
    return [
        f"{len(found)} of {part} ({', '.join(found[:EXAMPLES])}{', ...' if len(found) > EXAMPLES else ''})"
        for part, found in groups.items()
    ]


def averaged_names(model: nn.Module) -> dict[str, str]:
    """Map each stored name of the averaged copy to the weight that it averages.

    The copy's names are parameter paths below `model.` with every dot taken out, which cannot be undone
    without knowing the paths.
    """
    wrapper = getattr(model, "model", None)
    if not isinstance(wrapper, nn.Module):
        return {}
    return {"model_ema." + name.replace(".", ""): "model." + name for name, _ in wrapper.named_parameters()}


def _prefer_averaged(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    """Let the averaged copy take the place of the raw weights, if the configuration wants it (`use_ema`)."""
    names = averaged_names(model)
    there = [name for name in names if name in weights]
    if not there:
        return
    if not getattr(model, "use_ema", False):
        logger.info("%s also holds averaged (EMA) weights; the raw ones are used (use_ema: false)", file.name)
    elif len(there) < len(names):
        lacking = len(names) - len(there)
        logger.warning("%s lacks %d of its averaged weights; the raw ones are used", file.name, lacking)
    else:
        logger.info("%s: the averaged (EMA) weights are used (use_ema: true)", file.name)
        for averaged, raw in names.items():
            weights[raw] = weights.pop(averaged)


def _warn_of_another_schedule(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    stored, schedule = weights.get("alphas_cumprod"), getattr(model, "schedule", None)
    if stored is None or schedule is None:
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
) -> int:
    """Put the matched tensors in place, one after the other; return the bytes that are kept."""
    kept = 0
    spoilt = []
    for name in fit.matched:
        source = weights.pop(name)
        placed = source.to(device, dtype if source.is_floating_point() else source.dtype).contiguous()
        if not _is_finite(placed):
            spoilt.append(f"{name} ({int((~torch.isfinite(source)).sum())} of {source.numel()})")
        _place(model, name, placed)
        kept += placed.nbytes
        if placed.data_ptr() != source.data_ptr():
            release_pages(source)
    weights.clear()
    if spoilt:
        _report_nonfinite(spoilt, dtype, file, allow_nonfinite)
    stored = model.state_dict()
    for name in fit.zeros:
        _place(model, name, torch.zeros(stored[name].shape, dtype=dtype, device=device))
    for module in model.modules():
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


def _is_finite(tensor: Tensor) -> bool:
    """Look at every value in one pass: a NaN or an infinity survives the sum, which itself may overflow."""
    if not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _report_nonfinite(spoilt: list[str], dtype: torch.dtype, file: Path, allow: bool) -> None:
    more = f" and {len(spoilt) - EXAMPLES} more" if len(spoilt) > EXAMPLES else ""
    text = f"{file}: NaN or infinite weights as {dtype} in {', '.join(spoilt[:EXAMPLES])}{more}"
    if not allow:
        raise CheckpointError(f"{text}; the file is damaged, or needs another --dtype")
    logger.warning("%s; loaded all the same", text)
