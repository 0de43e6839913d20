"""Turn a configuration and a weights file into a model that is ready to run.

The network is built on the meta device, without memory. Each tensor of the file is then matched by name and
shape (`match.py`), converted on its own if necessary, and put in place (`fill.py`); one that needs no
conversion stays mapped from the file. So the peak memory is the model's weights plus one tensor.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint.classify import ZERO_SNR_MARK, stated_predictions
from ldm.checkpoint.layouts.averaged import averaged_names
from ldm.checkpoint.one_file import Opened
from ldm.checkpoint.opened import open_weights, to_ldm_names
from ldm.checkpoint.parts import part_of
from ldm.config import instantiate, plain, read_config
from ldm.devices import on_meta, resolve_device, resolve_dtype
from ldm.errors import ConfigError, WrongModelError
from ldm.loading.fill import Progress, fill_in, initialise_new, zero_pad_inputs
from ldm.loading.match import KeyMatch, as_named_by, check_scale, file_content, match_keys, refusal
from ldm.wording import counted

logger = logging.getLogger(__name__)

WEIGHTS = ("auto", "ema", "raw")
# Of alphas_cumprod: bfloat16 cuts off up to 2**-7 of a value, and float16 rounds by 2**-11 besides. Another
# schedule differs by more at its end, where alphas_cumprod is small.
SCHEDULE_TOLERANCE = {"rtol": 1e-2, "atol": 1e-6}


def load_model(
    config: Any,
    checkpoint: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    weights: str = "auto",
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
    check: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """Build the model of `config` with the weights of `checkpoint`, in evaluation mode and without gradients.

    Args:
        config: path of a YAML file, or what `load_config` returned; its `model` node is built.
        checkpoint: a .ckpt or .safetensors file, or a diffusers folder.
        device, dtype: see `resolve_device` and `resolve_dtype`; run the model under `autocast` of the same.
        weights: "ema" takes the EMA weights and "raw" the raw ones, or fails; "auto" follows the
            configuration's `use_ema`, and takes the EMA weights of a file that has no others.
        allow_nonfinite: only warn of NaN and infinite weights.
        progress: called with (bytes done, total bytes) of the file after each tensor.
        check: called with the model before the file is read, to refuse what this model cannot do.

    Raises:
        WrongModelError: the file holds another model, or another prediction, than the configuration says.
        BadValuesError: NaN or infinite weights.
        ConfigError, CheckpointError, BackendUnavailable: in one line.
    """
    if weights not in WEIGHTS:
        raise ConfigError(f"weights {weights!r}; expected one of {', '.join(WEIGHTS)}")
    started = time.perf_counter()
    device = resolve_device(device)
    dtype = resolve_dtype(dtype, device)
    file = Path(checkpoint)
    model, source, params = _built(config)
    if check is not None:
        check(model)
    opened = open_weights(file)
    has_zero_snr = opened.configs.get("scheduler", {}).get("rescale_betas_zero_snr") is True
    tensors, keys = _fitted(model, opened, source, params, weights)
    del opened                      # so that each tensor is freed once it is converted
    keys.log_foreign(file)
    check_scale(tensors, model, source, file.name)
    _warn_of_another_schedule(model, tensors, has_zero_snr, file)
    kept = fill_in(model, keys, tensors, device, dtype, file, allow_nonfinite, progress)
    model.eval().requires_grad_(False)
    logger.info(
        "loaded %s in %.1f s: %s, %.2f GB, %s on %s",
        file.name, time.perf_counter() - started, counted(len(keys.matched), "tensor"), kept / 1e9, dtype,
        device,
    )
    return model


def check_fits(config: Any, headers: Opened) -> None:
    """Raise what `load_model` would raise of the names, shapes and labels of a file; its values are not read.

    Args:
        config: as for `load_model`.
        headers: what `ldm.checkpoint.identification.open_headers` returns.

    Raises: WrongModelError, ConfigError, CheckpointError.
    """
    with torch.device("meta"):
        parts = {
            part: {
                name: torch.empty(x.shape, dtype=getattr(torch, x.dtype, torch.float32))
                for name, x in group.items()
            }
            for part, group in headers.parts.items()
        }
    model, source, params = _built(config)
    _fitted(model, replace(headers, parts=parts), source, params, "auto")


def _built(config: Any) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return the model of a configuration on the meta device, what to call that, and the model's `params`."""
    source = str(config) if isinstance(config, (str, Path)) else "the configuration"
    node = read_config(config) if isinstance(config, (str, Path)) else plain(config)
    defaults, knows = node.get("defaults") or {}, node.get("knows")
    if "target" not in node:
        if "model" not in node:
            raise ConfigError(f"{source}: has no 'model' node; expected model: {{target, params}}")
        node = node["model"]
    with on_meta():
        model = instantiate(node, path=f"{source}: model")
    model.defaults, model.knows = defaults, knows
    return model, source, node.get("params") or {}


def _fitted(
    model: nn.Module, opened: Opened, source: str, params: dict[str, Any], weights: str
) -> tuple[dict[str, Tensor], KeyMatch]:
    """Return the tensors of a file by the names of `model`, and how they match. Raises: WrongModelError."""
    _check_prediction(model, opened, source)
    if opened.configs:
        from ldm.loading.stated import check_folder

        check_folder(opened, params, source)
    tensors = as_named_by(model, to_ldm_names(opened))
    _choose_ema(model, tensors, weights, opened.metadata.get("sd.weights"), opened.path)
    _drop_absent_parts(model, tensors, opened.path)
    keys = match_keys(model, tensors)
    if not keys.is_good:
        raise WrongModelError(refusal(keys, model, tensors, opened.path, source))
    return tensors, keys


def load_part(
    model: nn.Module,
    path: str | Path,
    part: str = "first_stage_model",
    *,
    grow_inputs: Sequence[str] = (),
    new_tensors: Mapping[str, str] | None = None,
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Fill one part of a model from its own file, or from one that holds more; device and dtype stay.

    Args:
        part: the attribute of `model`: "first_stage_model", "embedder.model", ...; "" is all of it.
        grow_inputs: names of weights (out, in, ...) that have more inputs here than in the file; the further
            ones start at zero, so that the network at first computes what it did without them.
        new_tensors: pattern of names that the file lacks -> "zero", or "drawn" to leave what was drawn.

    Raises:
        WrongModelError: the file holds no such part, or one that does not fit; the model is unchanged.
        ConfigError: a name or pattern that fits nothing.
        BadValuesError, CheckpointError: as `load_model`.
    """
    file, prefix = Path(path), f"{part}." if part else ""
    what = _label(prefix) if part else type(model).__name__
    opened = open_weights(file)
    if part == "first_stage_model" and opened.configs:
        from ldm.loading.stated import check_vae

        check_vae(opened, model)
    own = opened.parts.get("", {})
    weights = {prefix + name: x for name, x in own.items()}
    if grow_inputs or new_tensors:
        weights = zero_pad_inputs(model, weights, grow_inputs)
        weights |= initialise_new(model, weights, new_tensors or {})
    keys = match_keys(model, weights, prefix, is_part=bool(prefix))
    if not keys.is_good and (prefix or not own):       # names of a whole model, or of another tool
        tensors = to_ldm_names(opened)
        weights = {name: x for name, x in tensors.items() if name.startswith(prefix)}
        keys = match_keys(model, weights, prefix)
        if not keys.matched and not keys.misshapen:
            held = file_content(tensors)
            raise WrongModelError(f"{file} holds no weights of {what}: it is {held}")
    if not keys.is_good:
        raise WrongModelError(f"{file} does not fit {what}: {keys.report()}")
    keys.log_foreign(file)
    like = next(model.get_submodule(part).parameters())
    fill_in(model, keys, weights, like.device, like.dtype, file, allow_nonfinite, progress)
    logger.info("%s: %s of %s", file.name, counted(len(keys.matched), "tensor"), what)


def _label(prefix: str) -> str:
    part = part_of(prefix)
    return f"the {part.label}" if part else prefix.removesuffix(".")


def _drop_absent_parts(model: nn.Module, weights: Mapping[str, Tensor], file: Path) -> None:
    """Drop optional parts (`OPTIONAL_PARTS`) that the file has no weights for."""
    for part in getattr(model, "OPTIONAL_PARTS", ()):
        if getattr(model, part) is not None and not any(name.startswith(f"{part}.") for name in weights):
            logger.warning("%s holds no weights of %s; it is left out", file.name, _label(f"{part}."))
            setattr(model, part, None)


def _choose_ema(
    model: nn.Module, weights: dict[str, Tensor], choice: str, mark: str | None, file: Path
) -> None:
    """Replace the raw weights by the EMA weights, or leave them.

    Args:
        choice: of WEIGHTS.
        mark: what the file says the weights under the usual names are: "ema", "raw", or None.
    """
    names = averaged_names(name for name, _ in model.named_parameters())
    lacking = [copy for copy in names if copy not in weights]
    has_average = len(lacking) < len(names)
    has_raw = mark != "ema" and any(raw in weights for raw in names.values())
    if choice == "raw" and names and not has_raw:
        raise WrongModelError(f"{file}: holds only EMA weights; leave --weights raw out")
    if choice == "ema" and lacking and mark != "ema":
        what = f"lacks {len(lacking)} of its" if has_average else "has no"
        raise WrongModelError(f"{file}: {what} EMA weights; leave --weights ema out")
    if choice == "raw" or not has_average:
        return
    if choice == "auto" and has_raw and not getattr(model, "use_ema", False):
        logger.info("%s also holds EMA weights; the raw ones are used (use_ema: false)", file.name)
    elif lacking:
        logger.warning("%s lacks %d of its EMA weights; the raw ones are used", file.name, len(lacking))
    else:
        reason = "as asked" if choice == "ema" else "use_ema: true" if has_raw else "the file has no others"
        logger.info("%s: the EMA weights are used (%s)", file.name, reason)
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
        logger.warning(
            "%s was trained to zero terminal SNR, which the configuration does not say: use --zero-snr",
            file.name,
        )
    if stored is not None and not is_same_schedule(stored, schedule.alphas_cumprod):
        logger.warning("%s was trained with another noise schedule; the configuration's is used", file.name)


def is_same_schedule(stored: Tensor, ours: Tensor) -> bool:
    """Tell whether two tables of alphas_cumprod, (N,) each, differ by no more than casts round away."""
    return stored.shape == ours.shape and torch.allclose(stored.double(), ours, **SCHEDULE_TOLERANCE)
