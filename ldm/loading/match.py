"""Compare the key names and shapes of a weights file with those of a model.

Nothing is guessed: a tensor too many, too few or of another shape is an error, except for the keys listed
here by name, and what a module itself names as unused. What belongs to no part of the model is left out.
"""

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ldm.checkpoint.classify import V_MARK, ZERO_SNR_MARK, classify
from ldm.checkpoint.parts import TABLE, VAE, part_of
from ldm.checkpoint.sniff import shown
from ldm.errors import WrongModelError
from ldm.wording import counted

logger = logging.getLogger(__name__)

SCHEDULE = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod"
    "|log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod"
    "|posterior_variance|posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2"
)
UNREAD = "only CLIP's own training reads them"

# Computed by the model itself; a file's copy is not read, and a file without them is complete.
COMPUTED = {
    SCHEDULE: "the configuration gives the noise schedule in float64; a half-precision file would degrade it",
    rf"(low_scale_model|noise_augmentor)\.({SCHEDULE})": "the same, of the noise on the conditioning",
    "logvar": "weights of the training loss; zeros in every released file",
    r"(.*\.)?text_model\.embeddings\.position_ids": "0..76; newer files leave it out, merges may round it",
}
# May be in a file although the model has no place for it.
SURPLUS = {
    SCHEDULE: COMPUTED[SCHEDULE],
    "lvlb_weights|logvar": "weights of the training loss",
    "scale_factor": "the scale of the latents, which is compared with the configuration's",
    r"model_ema\.(decay|num_updates)": "counters of the EMA; every released .ckpt has them",
    r"model_ema\..*": "the EMA weights, where the raw ones are used; the log says which",
    r"(first_stage_model\.)?loss\..*": "the discriminator that the autoencoder was trained against",
    r"(first_stage_model\.)?model_ema\..*": "the EMA weights of the autoencoder",
    r"cond_stage_model\.model\.attn_mask": "the causal mask, computed by the model",
    r"cond_stage_model\..*\bembeddings\.position_ids": "0..76; under HF's name in converted SD 2.x",
    r"cond_stage_model\.(transformer\.)?(logit_scale|text_projection(\.weight)?)": UNREAD,
    f"{V_MARK}|{ZERO_SNR_MARK}": "empty marks of what the network was trained for",
}
# May be missing from a file although the model has a place for it; filled with zeros. A module adds to it by
# `unused_parameters()`: names of those that its forward pass never reads. A file has all of them, or none.
UNUSED = {
    r"(cond_stage_model\.)?model\.(logit_scale|text_projection)": UNREAD,
}
EXAMPLES = 3                    # names shown of each group


@dataclass
class KeyMatch:
    """How the key names of a model and of a file agree."""

    matched: list[str] = field(default_factory=list)
    zeros: list[str] = field(default_factory=list)          # of UNUSED, missing from the file
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)        # of no part of the model
    misshapen: list[str] = field(default_factory=list)      # "name (320, 9, 3, 3) instead of (320, 4, 3, 3)"

    def log_foreign(self, file: Path) -> None:
        """Log in one line what is left out."""
        if self.foreign:
            count, names = counted(len(self.foreign), "tensor"), some(self.foreign)
            logger.warning("%s: left out %s of no part of the model: %s", file.name, count, names)

    @property
    def is_good(self) -> bool:
        return not (self.missing or self.unexpected or self.misshapen)

    def counts(self) -> str:
        """Return in one line how many tensors agree."""
        expected = len(self.matched) + len(self.missing) + len(self.misshapen)
        return (
            f"{counted(expected, 'tensor')} expected: {len(self.matched)} matched, "
            f"{len(self.missing)} missing, {len(self.misshapen)} misshapen; {len(self.unexpected)} unexpected"
        )

    def report(self) -> str:
        """Return in one line what disagrees, with counts and by part of the model."""
        groups = [
            f"{what} {group}"
            for what, names in (
                ("missing", self.missing), ("misshapen", self.misshapen), ("unexpected", self.unexpected)
            )
            for group in _groups(names)
        ]
        return "; ".join([self.counts(), *groups])


def match_keys(
    model: nn.Module, weights: Mapping[str, Tensor], prefix: str = "", is_part: bool = False
) -> KeyMatch:
    """Compare the names, shapes and kinds of `weights` with what `model` stores below `prefix`.

    Args:
        is_part: the file is of this part alone, so `prefix` does not tell what belongs to it.
    """
    found = KeyMatch()
    stored = {name: x for name, x in model.state_dict().items() if name.startswith(prefix)}
    stored |= {name: x for name, x in optional_buffers(model).items() if name in weights}
    unused = _unused_parameters(model, weights)
    for name, place in stored.items():
        if _is_listed(name, COMPUTED):
            continue
        if name not in weights:
            (found.zeros if name in unused or _is_listed(name, UNUSED) else found.missing).append(name)
        elif weights[name].shape != place.shape:
            found.misshapen.append(f"{name} {tuple(weights[name].shape)} instead of {tuple(place.shape)}")
        elif weights[name].is_floating_point() != place.is_floating_point():
            found.misshapen.append(f"{name} {weights[name].dtype} instead of {place.dtype}")
        else:
            found.matched.append(name)
    below = prefix if is_part else ""
    roots = {_root(name, below) for name in stored}
    for name in weights:
        if name not in stored and not _is_listed(name, SURPLUS):
            is_foreign = _root(name, below) not in roots and (is_part or part_of(name) is None)
            (found.foreign if is_foreign else found.unexpected).append(name)
    return found


def _root(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).partition(".")[0]


def as_named_by(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix if the configuration is of one part alone, such as an autoencoder."""
    names = model.state_dict().keys()
    if not names.isdisjoint(weights):
        return weights
    for part in TABLE:
        inside = {name.removeprefix(part.prefix): x for name, x in weights.items() if part_of(name) is part}
        if not names.isdisjoint(inside):
            return inside
    return weights


def optional_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that released files lack, and that are read if a file has them."""
    return {
        f"{path}.{name}" if path else name: getattr(module, name)
        for path, module in model.named_modules()
        for name in getattr(module, "OPTIONAL_BUFFERS", ())
    }


def _unused_parameters(model: nn.Module, weights: Mapping[str, Tensor]) -> set[str]:
    """Return what the modules of `model` name as unused, if a file has none of it.

    Diffusers folders have no place for such weights. A file with some of them is damaged.
    """
    unused: set[str] = set()
    for path, module in model.named_modules():
        if hasattr(module, "unused_parameters"):
            names = {f"{path}.{name}" if path else name for name in module.unused_parameters()}
            unused |= names if names.isdisjoint(weights) else set()
    return unused


def check_scale(tensors: Mapping[str, Tensor], model: nn.Module, source: str, file: str) -> None:
    """Compare the scale of the latents that some training files hold as a tensor with the model's.

    Raises:
        WrongModelError: they differ by more than bfloat16 rounds away.
    """
    stored, own = tensors.get("scale_factor"), getattr(model, "scale_factor", None)
    if stored is None or own is None or stored.numel() != 1:
        return
    theirs = float(stored)
    if not math.isclose(theirs, own, rel_tol=1 / 256):
        raise WrongModelError(
            f"{file} says scale_factor {theirs:.6g}, and {source} {own:.6g}; give a --config that says so too"
        )


def refusal(
    found: KeyMatch, model: nn.Module, weights: Mapping[str, Tensor], file: Path, source: str
) -> str:
    """Return what the file is, what the configuration is for, what to do, and then what disagrees."""
    file_is, model_is = file_content(weights), described(model.state_dict())
    if all(name.startswith(VAE) for name in weights):
        advice = "give the whole model with --ckpt and this file with --vae"
        return f"{file} is {file_is}, but {source} asks for {model_is}: {advice}"
    if file_is == model_is:
        is_more = found.unexpected and not found.missing and not found.misshapen
        why = "it holds more than that model" if is_more else "it is incomplete or of another size"
        verdict = f"{file} does not fit {source}: both are {model_is}, so {why}"
    else:
        verdict = f"{file} is {file_is}, but {source} asks for {model_is}"
        if len(found.matched) < len(found.missing) + len(found.misshapen):  # another model: names add nothing
            return f"{verdict}; {found.counts()}"
    return f"{verdict}; {found.report()}"


def file_content(weights: Mapping[str, Tensor]) -> str:
    """Return what weights are, in a few words."""
    held = {part_of(name) for name in weights}
    alone = held.pop() if len(held) == 1 else None
    return f"the {alone.label} alone" if alone and alone.name != "ema" else described(weights)


def described(weights: Mapping[str, Tensor]) -> str:
    """Return what weights are, with an article."""
    return classify(
        {name: (str(x.dtype).removeprefix("torch."), tuple(x.shape)) for name, x in weights.items()}
    ).sentence()


def _is_listed(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _groups(names: list[str]) -> list[str]:
    """Group names by the part of the model that they belong to, with a count and a few examples."""
    groups: dict[str, list[str]] = {}
    for name in names:
        part = part_of(name)
        groups.setdefault(f"the {part.label}" if part else "no known part", []).append(name)
    return [f"{len(found)} of {part} ({some(found)})" for part, found in groups.items()]


def some(names: list[str]) -> str:
    """Return the first few names."""
    return ", ".join([shown(name) for name in names[:EXAMPLES]] + ["..."] * (len(names) > EXAMPLES))
