"""Convert a checkpoint: between one file with LDM key names and a diffusers folder, or into another file.

    folder -> FILE.safetensors      LDM key names
    file   -> FILE.safetensors      the names of the file
    file   -> FOLDER                any other name

A folder needs a configuration, which is compared with the weights before anything is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import convert as writing
from ldm.checkpoint import identify
from ldm.checkpoint.classify import (
    CONFIGS,
    PREDICTION_KEYS,
    PREDICTIONS,
    SD,
    V_MARK,
    classify,
    config_for,
)
from ldm.checkpoint.controlnet import DIFFERENCE, POOLED, completed, pooled_by
from ldm.checkpoint.identity import Identity
from ldm.checkpoint.layouts import UNUSED
from ldm.checkpoint.opened import open_weights, to_ldm_names
from ldm.checkpoint.parts import EMA, PARTS, TABLE, UNET
from ldm.checkpoint.sniff import Container
from ldm.config import find_weights, instantiate, read_config, yaml_beside
from ldm.devices import on_meta
from ldm.errors import ConfigError, InputError, WrongModelError
from ldm.loading.match import match_keys
from ldm.loading.stated import check_folder
from ldm.wording import script

FILE_ENDING = ".safetensors"
# unCLIP's statistics of image embeddings: a file may leave them out, a folder may not.
MEAN, STD = "noise_augmentor.data_mean", "noise_augmentor.data_std"
CONTROL = PARTS["controlnet"].prefix
# A reference configuration that has a part alone in it.
OF_PARTS = {
    ("vae", None): SD + "v1-inference.yaml",
    ("text_encoder", "1.x"): SD + "v1-inference.yaml",
    ("text_encoder", "2.x"): SD + "v2-inference.yaml",
    ("controlnet", "1.x"): CONFIGS["1.x", "controlnet"],
    ("controlnet", "2.x"): CONFIGS["2.x", "controlnet"],
}


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert."""

    config: str | None = None           # YAML; None takes the reference one that the weights are of
    prediction: str | None = None       # eps or v, as the result states; None takes what is known
    weights: str = "auto"               # of ldm.checkpoint.convert.COPIES
    prune: bool = False                 # leave out what only training needs
    dtype: torch.dtype | None = None    # of the weights written; None keeps each
    variant: str | None = None          # of the folder read or written, such as fp16
    overwrite: bool = False
    only: str | None = None             # the one part to take, a name of ldm.checkpoint.parts.PARTS
    base: str | None = None             # weights that a ControlNet which is a difference is added to


def convert(
    source: str | Path,
    target: str | Path,
    options: ConvertOptions | None = None,
    progress: writing.Progress | None = None,
) -> writing.Converted:
    """Convert `source` to `target`; the new file or folder appears there whole, or nothing changes.

    Raises:
        InputError: a target that exists, or that makes no sense for this source.
        ConfigError: no configuration for a folder, or one that diffusers cannot express.
        WrongModelError: the configuration is another model's, or the copy asked for is not there.
        CheckpointError: what reading may raise.
    """
    options = options or ConvertOptions()
    source, target = find_weights(source), Path(target).expanduser()
    from_folder, to_folder = source.is_dir(), target.suffix.lower() != FILE_ENDING
    if from_folder and to_folder:
        raise InputError(f"{target}: a folder becomes one file; give a name that ends in {FILE_ENDING}")
    writing.check_target(target, is_folder=to_folder, overwrite=options.overwrite)
    opened = open_weights(source, variant=options.variant if from_folder else None)
    identity = identify(source)
    is_renamed = from_folder or to_folder or options.only is not None or options.base is not None
    tensors = to_ldm_names(opened) if is_renamed else opened.parts[""]
    is_pooled = identity.kind == "controlnet" and pooled_by(
        source, opened.metadata, opened.configs.get("controlnet", {})
    )
    if options.base is not None:
        tensors = _with_base(tensors, identity, options.base)
    elif to_folder and identity.variant == DIFFERENCE:
        raise InputError(f"{source} is {identity.sentence()}; give the weights to add it to with --base FILE")
    if options.only is not None:
        tensors = _only(tensors, identity, options.only)
    if options.only is not None or options.base is not None:
        identity = replace(classify(stored_of(tensors), opened.metadata), path=identity.path)
    own = None
    if to_folder and options.config is None and identity.is_model:
        own = yaml_beside(source, by_name=config_for(identity, "eps") is not None)
        options = replace(options, config=str(own)) if own else options
    described = None
    if to_folder or options.config is not None:
        described = _Described.by(options, identity)
    if described and is_pooled:
        described.params["global_average_pooling"] = True
    if from_folder and (config := options.config or identity.config):
        params = described.params if described else read_config(config)["model"]["params"]
        check_folder(opened, params, config)
    chosen, dropped = writing.select(
        tensors, options.weights, options.prune, described and described.model.state_dict()
    )
    # What is usual for models of this kind is not the file's own word: a probe may yet tell otherwise.
    is_usual = not (options.prediction or options.config) and identity.prediction_source == "family"
    prediction = None
    if not is_usual and any(name.startswith((UNET, EMA)) for name in tensors):
        prediction = options.prediction or (described.prediction if described else identity.prediction)
    if prediction == "eps":
        chosen = {name: x for name, x in chosen.items() if name != V_MARK}
    said = _without_contradictions(opened.metadata, prediction)
    metadata = {**said, **_metadata(identity, said, tensors, chosen, prediction)}
    if is_pooled and options.only in (None, "controlnet"):
        metadata[POOLED] = "true"
    shared: dict[str, Any] = {"dtype": options.dtype, "overwrite": options.overwrite, "progress": progress}
    if described:
        described.check(chosen, source)
    if to_folder:
        chosen = described.with_statistics(chosen, source)
        done = writing.write_folder(
            target, chosen, described.params, metadata, variant=options.variant, **shared
        )
    else:
        chosen = _without_trivial_statistics(chosen) if from_folder else chosen
        done = writing.write_file(target, chosen, metadata, sources=opened.files, **shared)
    done.dropped = dropped
    if own is not None:
        done.notes.append(f"the configuration is {own}, which is next to the file")
    if is_usual and (target / "scheduler").is_dir():
        done.notes.append(
            f"scheduler_config.json says {described.prediction}, as do all reference models of this kind; "
            f"if this one may not, let {script('identify')} --probe tell, and convert it again"
        )
    if opened.container is Container.FOLDER and UNUSED not in opened.parts:
        done.notes.append(
            "the folder has no unused.safetensors, so what diffusers has no place for (the last text block, "
            "text_projection, logit_scale, the noise schedule) is not in the file; sampling does not need it"
        )
    return done


def _only(tensors: dict[str, Tensor], identity: Identity, name: str) -> dict[str, Tensor]:
    """Return the tensors of one part. Raises: WrongModelError if there are none."""
    part = PARTS[name]
    found = {key: x for key, x in tensors.items() if key.startswith(part.prefix)}
    if not found:
        what = f"{identity.path} is {identity.sentence()}"
        raise WrongModelError(f"{what}; it has no {part.label} (--only {name})")
    return found


def _with_base(tensors: dict[str, Tensor], identity: Identity, base: str) -> dict[str, Tensor]:
    """Return the ControlNet of a difference, whole. Raises: WrongModelError where the two do not fit."""
    if identity.variant != DIFFERENCE:
        raise InputError(f"{identity.path} is {identity.sentence()}, no difference; leave --base out")
    opened = open_weights(base)
    unet, control = (
        {name.removeprefix(prefix): x for name, x in held.items() if name.startswith(prefix)}
        for held, prefix in ((to_ldm_names(opened), UNET), (tensors, CONTROL))
    )
    family = identify(base).family
    if not unet or family != identity.family:
        what = identify(base).sentence()
        raise WrongModelError(f"{identity.path} is {identity.sentence()}, and --base {base} is {what}")
    return {CONTROL + name: x for name, x in completed(control, unet).items()}


def stored_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return what `classify` reads of tensors."""
    return {name: (str(x.dtype).removeprefix("torch."), tuple(x.shape)) for name, x in tensors.items()}


@dataclass(frozen=True)
class _Described:
    """What a configuration says of the weights."""

    source: str                 # the YAML
    params: dict[str, Any]      # of its `model` node
    model: nn.Module            # on the meta device

    @classmethod
    def by(cls, options: ConvertOptions, identity: Identity) -> "_Described":
        """Read the configuration that is asked for, or the reference one that the weights are of."""
        path = options.config or config_for(identity, options.prediction)
        path = path or OF_PARTS.get((identity.kind, identity.family))
        if path is None:
            is_open = identity.family == "2.x" and identity.task == "txt2img"
            what = "does not say whether it predicts eps or v: give --prediction" if is_open else (
                "no included configuration describes it: give --config YAML, by which a folder is written"
            )
            raise ConfigError(f"{identity.path} is {identity.sentence()}, and {what}")
        node = read_config(path).get("model")
        params = node.setdefault("params", {})
        stated = params.get("parameterization", "eps")
        says_itself = identity.prediction_source not in (None, "family")
        if options.config is None:
            params["parameterization"] = options.prediction or identity.prediction or stated
        elif options.prediction not in (None, stated):
            raise ConfigError(
                f"--prediction {options.prediction}, but {path} says parameterization: {stated}; "
                "leave one of them out"
            )
        elif options.prediction is None and says_itself and identity.prediction != stated:
            raise WrongModelError(
                f"{identity.path} says that it predicts {identity.prediction}, but {path} says "
                f"parameterization: {stated}; give another --config, or --prediction {stated} if it is right"
            )
        with on_meta():
            return cls(str(path), params, instantiate(node, path=f"{path}: model"))

    @property
    def prediction(self) -> str:
        return self.params.get("parameterization", "eps")

    def check(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        """Compare each part of the weights with that of the configuration."""
        for part in (part for part in TABLE if part.is_network):
            inside = {name: x for name, x in tensors.items() if name.startswith(part.prefix)}
            found = match_keys(self.model, inside, part.prefix)
            if inside and not found.is_good:
                raise WrongModelError(
                    f"{file} does not fit {self.source} in the {part.label}: {found.report()}"
                )

    def with_statistics(self, tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
        """Add unCLIP's statistics, from the file that the configuration names, where they are not there."""
        augmentor = getattr(self.model, "noise_augmentor", None)
        if augmentor is None or MEAN in tensors or not any(x.startswith("embedder.") for x in tensors):
            return tensors
        augmentor.look_beside(file.parent)
        augmentor.materialise_buffers("cpu")
        return tensors | {MEAN: augmentor.data_mean, STD: augmentor.data_std}


def _without_trivial_statistics(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave mean 0 and deviation 1 to the configuration, as the reference files do."""
    if MEAN not in tensors or bool(tensors[MEAN].any()) or not bool((tensors[STD] == 1).all()):
        return tensors
    return {name: x for name, x in tensors.items() if name not in (MEAN, STD)}


def _without_contradictions(said: Mapping[str, str], prediction: str | None) -> dict[str, str]:
    """Return what a file said of itself, but for other predictions than the result states."""
    if prediction is None:
        return dict(said)
    fits = (None, prediction)
    return {k: v for k, v in said.items() if k not in PREDICTION_KEYS or PREDICTIONS.get(v) in fits}


def _metadata(
    identity: Identity,
    said: Mapping[str, str],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    prediction: str | None,
) -> dict[str, str]:
    """Return what the result says of itself."""
    copies = [any(name.startswith(EMA) for name in names) for names in (before, after)]
    raw = any(name.startswith(UNET) for name in before)
    weights = said.get("sd.weights")
    if copies[1]:
        weights = "raw+ema"
    elif copies[0]:
        weights = "ema" if not raw or _took_averaged(before, after) else "raw"
    weights = weights or identity.weights
    stated = {
        "sd.family": identity.family, "sd.task": identity.task, "sd.prediction": prediction,
        "sd.weights": weights, "sd.config": config_for(identity, prediction) or identity.config,
    }
    return {"format": "pt", **{key: str(value) for key, value in stated.items() if value is not None}}


def _took_averaged(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return any(after[name] is not x for name, x in before.items() if name.startswith(UNET))
