"""Fill in the options that a request leaves to the model and to the sampler.

Two things that decide an image are not options: the dtype that was chosen for the device, and tiles that were
chosen for the free memory. Images record both on their own (`ldm.jobs.record`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ldm.errors import ConfigError, InputError, nearest
from ldm.requests import NAMES, name_of
from ldm.requests.base import Request
from ldm.requests.fields import fields_of
from ldm.requests.groups import MAX_SIDE, Size

MIX_NOISE_LEVEL = 50  # of the reference page, as the next
NOISE_LEVEL = 20

R = TypeVar("R", bound=Request)

REFERENCE = "reference"
"""the schedule with the times of the reference scripts, of which there may be more than --steps"""


@dataclass(frozen=True)
class ModelFacts:
    """The properties of a model that requests are resolved with.

    Args:
        native_size: side in pixels of the images that the model is configured for.
        training_size: side in pixels that the weights were trained at, which may differ.
        latent_channels, latent_factor: channels of a latent, and pixels per latent.
        defaults: options that the model's YAML recommends, by task.
        max_noise_level: of the noise that an upscaler adds to the small image; 0 if it adds none.
        size_multiple: image sides, in pixels, that need no padding are multiples of this.
    """

    native_size: int
    training_size: int
    latent_channels: int
    latent_factor: int
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    max_noise_level: int = 0
    size_multiple: int = 64


def resolved(request: R, facts: ModelFacts) -> R:
    """Return the request with all defaults of the model and of the sampler filled in.

    Raises: InputError for options that contradict each other, the sampler, or the model.
    """
    own = _recommended(type(request), facts)
    values = {}
    for name, each in fields_of(type(request)).items():
        if getattr(request, name) is None and (name != "eta" or name in own):
            values[name] = own.get(name, each.option.usual)
    request = replace(request, **values)
    request = replace(request, **sampler_options(request))
    if request.latent_channels not in (None, facts.latent_channels):
        raise InputError(
            f"--C {request.latent_channels}: this model's latents have {facts.latent_channels} channels; "
            "leave --C out"
        )
    return replace(request, **_size(request, facts), **_further(request, facts))


def _recommended(cls: type[Request], facts: ModelFacts) -> Mapping[str, Any]:
    """Return the options that the model's YAML recommends for a task.

    Raises: ConfigError for a task or an option that does not exist, or one that has a default of its own.
    """
    for task in facts.defaults:
        if task not in NAMES:
            raise ConfigError(f"the model's YAML: defaults: there is no task {task!r}{nearest(task, NAMES)}")
    own = next((facts.defaults[task] for task in map(name_of, cls.__mro__) if task in facts.defaults), {})
    open_ones = [name for name, each in fields_of(cls).items() if each.default is None]
    for name in own:
        if name not in open_ones:
            raise ConfigError(
                f"the model's YAML: defaults: no model can recommend {name!r} for {cls.__name__}"
                f"{nearest(name, open_ones)}"
            )
    return own


def sampler_options(request: Request) -> dict[str, Any]:
    """Return the sampler, its schedule and its eta, which do not depend on the model.

    The default is ddim with the times of the reference scripts. A sampler that is given explicitly runs
    exactly `steps` UNet evaluations, unless the schedule is "reference".

    Raises: InputError for unknown names, or an eta or schedule that the sampler does not support.
    """
    from ldm.diffusion.spacing import check_spacing
    from ldm.samplers import find_sampler

    row = find_sampler("ddim" if request.sampler is None else request.sampler)
    cls, schedule, eta = row.cls, request.schedule, request.eta
    if schedule is None:
        exact = cls.count_exact_spacing if request.sampler is not None else None
        schedule = exact or cls.default_spacing or REFERENCE
    elif schedule != REFERENCE:
        check_spacing(schedule)
    elif cls.default_spacing is not None:
        raise InputError(
            f"--schedule reference: the reference has no {row.name} sampler; use it with ddim, plms or dpm"
        )
    if eta is None:
        eta = fields_of(type(request))["eta"].option.usual if row.name == "ddim" else cls.default_eta
    elif eta and cls.default_eta is None:
        raise InputError(
            f"eta {eta:g}: the {row.name} sampler takes no eta; leave it out, or use ddim or euler_a"
        )
    return {"sampler": row.name, "schedule": schedule, "eta": eta or 0.0}


def _size(request: Request, facts: ModelFacts) -> dict[str, Any]:
    """Return height and width of tasks without an input image; as in the reference, latents are H // f."""
    factor, own = request.latent_factor, facts.latent_factor
    if not isinstance(request, Size):
        if factor not in (None, own):
            raise InputError(f"--f {factor}: this model has {own} pixels per latent; leave --f out")
        return {}
    height, width = request.height or facts.native_size, request.width or facts.native_size
    if getattr(request, "controls", ()) and not (request.height and request.width):
        height, width = _as_controlled(request, facts)
    if factor not in (None, own):
        height, width = (side // factor * own for side in (height, width))
        if not (height and width):
            raise InputError(f"--f {factor} is larger than the image; leave --f out")
    return {"height": height, "width": width, "latent_factor": own}


def _as_controlled(request: Request, facts: ModelFacts) -> tuple[int, int]:
    """Return height and width in the proportions of the first control's image, one of them as asked for.

    As on ControlNet's pages the shorter side has the model's own size, and both are multiples of 64.
    """
    own = request.controls[0].image.values.shape[:2]
    asked = (request.height, request.width)
    if any(asked):
        scale = next(side / by for side, by in zip(asked, own, strict=True) if side)
    else:
        scale = facts.native_size / min(own)
    rounded = (max(round(scale * side / facts.size_multiple), 1) * facts.size_multiple for side in own)
    height, width = (side or other for side, other in zip(asked, rounded, strict=True))
    if max(height, width) > MAX_SIDE:
        raise InputError(
            f"the image of --control is {own[1]}x{own[0]}, in whose proportions the result would be "
            f"{width}x{height}; give --H and --W"
        )
    return height, width


def _further(request: Request, facts: ModelFacts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if getattr(request, "hires", None) is not None:
        if request.hires_strength is None:
            found["hires_strength"] = {"pixel": 0.4, "latent": 0.65}[request.hires_mode]
        found["hires_steps"] = request.hires_steps or request.steps
    if hasattr(request, "fit") and request.fit is None and request.latents is None:
        found["fit"] = "crop" if request.height or request.width else "exact"
    if getattr(request, "mix_noise_level", 0) is None and len(request.init_img) > 1:
        found["mix_noise_level"] = MIX_NOISE_LEVEL
    if facts.max_noise_level and getattr(request, "noise_level", 0) is None:
        found["noise_level"] = min(NOISE_LEVEL, facts.max_noise_level)
    if hasattr(request, "window"):
        found["window"] = request.window or facts.training_size
    return found
