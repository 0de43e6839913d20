"""Compare what the JSON files of a diffusers folder say of a model with its configuration.

Names and shapes do not show the noise schedule, the scale of the latents or the number of heads. A model that
runs with other numbers than it was trained with makes poor images, so a contradiction is an error.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ldm.checkpoint import diffusers_configs as ours
from ldm.checkpoint.classify import PREDICTIONS
from ldm.checkpoint.one_file import Opened
from ldm.checkpoint.sniff import shown
from ldm.diffusion.schedule import make_betas
from ldm.errors import ConfigError, WrongModelError

Json = Mapping[str, Any]

SCHEDULE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
UNET = ("attention_head_dim", "act_fn", "norm_num_groups", "flip_sin_to_cos", "freq_shift")
LATER = ("shift_factor", "latents_mean", "latents_std")     # of autoencoders of later models
# part of a folder -> what its JSON would say of our configuration, and the keys to compare
CHECKED: dict[str, tuple[Callable[[dict[str, Any]], Json], tuple[str, ...]]] = {
    "scheduler": (ours.scheduler, SCHEDULE),
    "low_res_scheduler": (ours.low_res_scheduler, SCHEDULE),
    "image_noising_scheduler": (ours.image_noising_scheduler, SCHEDULE),
    "unet": (ours.unet, ("_class_name", *UNET, "class_embed_type")),
    "controlnet": (ours.controlnet, UNET),
    "vae": (ours.vae, ("_class_name", "scaling_factor", "latent_channels", "norm_num_groups", *LATER)),
    "text_encoder": (ours.text_encoder, ("num_attention_heads", "hidden_act", "num_hidden_layers")),
}
# pipelines that run SD 1.x and 2.x, under the names that diffusers has and had
OF_SD = re.compile(
    r"(Flax|Onnx)?(Stable(Diffusion(?!XL|3)|UnCLIP)|LatentConsistency|(Alt|Cycle)Diffusion|AnimateDiff(?!SDXL))"
)
CAPPED = "squaredcos_cap_v2"        # a schedule that beta_start and beta_end do not change
TOLERANCE = 1e-4                    # of a number; JSON files have them in full


def check_folder(opened: Opened, params: dict[str, Any], source: str) -> None:
    """Compare every part of a folder with the `params` of the configuration's `model` node.

    Raises:
        WrongModelError: the folder has other numbers; the text has both.
    """
    index = str(opened.configs.get("model_index", {}).get("_class_name", "StableDiffusionPipeline"))
    if not OF_SD.match(index):
        raise WrongModelError(
            f"{opened.path / 'model_index.json'} says {shown(index[:100])}, and {source} is for a Stable "
            "Diffusion 1.x or 2.x model; give another folder, or correct whichever is wrong"
        )
    for part, (describe, keys) in CHECKED.items():
        said = opened.configs.get(part)
        if said is None:
            continue
        try:
            own = describe(params)
        except (ConfigError, KeyError):         # a part that the configuration has not, or not in these words
            continue
        _compare(opened, part, said, own, keys, source)
    scheduler = opened.configs.get("scheduler", {})
    _check_trained_betas(opened, scheduler.get("trained_betas"), params, source)
    prediction = scheduler.get("prediction_type")
    if prediction is not None and str(prediction) not in PREDICTIONS:
        theirs = f"prediction_type {shown(str(prediction)[:100])}"
        raise _contradiction(opened, "scheduler", theirs, f"{source} {params.get('parameterization', 'eps')}")


def check_vae(opened: Opened, model: nn.Module) -> None:
    """Compare the JSON of an autoencoder that replaces a model's own with that model. Raises as above."""
    names = {"scaling_factor": "scale_factor", "latent_channels": "channels"}
    own = {key: getattr(model, name) for key, name in names.items() if hasattr(model, name)}
    _compare(opened, "vae", opened.configs.get("vae", {}), own, (*own, *LATER), "the model")


def _compare(opened: Opened, part: str, said: Json, own: Json, keys: tuple[str, ...], source: str) -> None:
    other = [key for key in keys if key in said and not _is_same(said[key], own.get(key))]
    if said.get("beta_schedule") == own.get("beta_schedule") == CAPPED:
        other = [key for key in other if key not in ("beta_start", "beta_end")]
    if said.get("trained_betas") is not None:
        other = [key for key in other if not key.startswith("beta_")]
    if other:
        told = {key: _spelled(said[key], own.get(key))[:100] for key in other}
        theirs = ", ".join(f"{key} {shown(value)}" for key, value in told.items())
        we_have = ", ".join(_spelled(own.get(key), said[key]) for key in other)
        raise _contradiction(opened, part, theirs, f"{source} {we_have}")


def _spelled(value: Any, other: Any) -> str:
    """Return a value as text, quoted where only the quotes tell it from the other."""
    return repr(value) if str(value) == str(other) else str(value)


def _contradiction(opened: Opened, part: str, theirs: str, we_have: str) -> WrongModelError:
    name = "scheduler_config.json" if part.endswith("scheduler") else "config.json"
    folder = opened.path / part if "model_index" in opened.configs else opened.path
    return WrongModelError(
        f"{folder / name} says {theirs}, and {we_have}; give a --config that says so too, or correct "
        "whichever is wrong"
    )


def _check_trained_betas(opened: Opened, betas: Any, params: dict[str, Any], source: str) -> None:
    if betas is None:
        return
    names = ("beta_schedule", "timesteps", "linear_start", "linear_end", "cosine_s")
    own = make_betas(**{name: params[name] for name in names if name in params}).tolist()
    if not isinstance(betas, list) or not _is_same(betas, own):
        raise _contradiction(opened, "scheduler", f"trained_betas {_span(betas)}", f"{source} {_span(own)}")


def _span(values: Any) -> str:
    is_row = isinstance(values, list) and values and all(isinstance(x, (int, float)) for x in values)
    return f"{len(values)} from {values[0]:.6g} to {values[-1]:.6g}" if is_row else shown(repr(values)[:100])


def _is_same(theirs: Any, own: Any) -> bool:
    """Compare two values of JSON: numbers nearly, None as 0, and one number with a list of equal ones."""
    if isinstance(theirs, list) != isinstance(own, list):
        one, several = (own, theirs) if isinstance(theirs, list) else (theirs, own)
        return bool(several) and all(_is_same(one, each) for each in several)
    if isinstance(theirs, list):
        return len(theirs) == len(own) and all(map(_is_same, theirs, own))
    if all(value is None or isinstance(value, (int, float)) for value in (theirs, own)):
        return math.isclose(theirs or 0, own or 0, rel_tol=TOLERANCE)
    return theirs == own
