"""Fill in what a request leaves to the model and to the sampler.

A resolved request has no option left that means "the model's own", so it says all that decides an image.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ldm.errors import InputError
from ldm.requests.base import Request
from ldm.requests.fields import fields_of
from ldm.requests.groups import Size

MIX_NOISE_LEVEL = 50  # of the reference page

R = TypeVar("R", bound=Request)

REFERENCE = "reference"
"""the schedule that stands for the times of the reference scripts, which may be more than the steps"""


@dataclass(frozen=True)
class ModelFacts:
    """What requests are resolved with.

    Args:
        native_size: side in pixels of the images that the model is made for.
        training_size: the same, where the weights themselves are known to be trained at another.
        latent_channels, latent_factor: channels of a latent, and pixels per latent.
        defaults: options that the model's YAML recommends, for each task by name.
    """

    native_size: int
    training_size: int
    latent_channels: int
    latent_factor: int
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def resolved(request: R, facts: ModelFacts) -> R:
    """Return the request with every default of the model's and of the sampler's in place.

    Raises: InputError for options that contradict each other, the sampler, or the model.
    """
    own = facts.defaults.get(type(request).__name__.lower(), {})
    values = {}
    for name, each in fields_of(type(request)).items():
        if getattr(request, name) is None and name != "eta":
            values[name] = own.get(name, each.option.usual)
    request = replace(request, **values)
    request = replace(request, **sampler_options(request))
    if request.latent_channels not in (None, facts.latent_channels):
        raise InputError(
            f"--C {request.latent_channels}: this model's latents have {facts.latent_channels} channels; "
            "leave --C out"
        )
    return replace(request, **_size(request, facts), **_further(request, facts))


def sampler_options(request: Request) -> dict[str, Any]:
    """Return the sampler, its schedule and its eta, which do not depend on the model.

    The default is ddim at the times of the reference scripts. A sampler that is named runs exactly as many
    UNet evaluations as there are steps, unless the schedule is the reference's.

    Raises: InputError for names that do not exist, or an eta or a schedule that the sampler cannot honour.
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
            f"--schedule reference: the reference has no {row.name}; use it with ddim, plms or dpm"
        )
    if eta is None:
        eta = fields_of(type(request))["eta"].option.usual if row.name == "ddim" else cls.default_eta
    elif eta and cls.default_eta is None:
        raise InputError(
            f"eta {eta:g}: the {row.name} sampler takes no eta; leave it out, or use ddim or euler_a"
        )
    return {"sampler": row.name, "schedule": schedule, "eta": eta or 0.0}


def _size(request: Request, facts: ModelFacts) -> dict[str, Any]:
    """Return height and width where no image gives them; as in the reference, latents are H // f."""
    factor, own = request.latent_factor, facts.latent_factor
    if not isinstance(request, Size):
        if factor not in (None, own):
            raise InputError(f"--f {factor}: this model has {own} pixels per latent; leave --f out")
        return {}
    height, width = request.height or facts.native_size, request.width or facts.native_size
    if factor not in (None, own):
        height, width = (side // factor * own for side in (height, width))
        if not (height and width):
            raise InputError(f"--f {factor} is larger than the image; leave --f out")
    return {"height": height, "width": width, "latent_factor": own}


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
    if hasattr(request, "window"):
        found["window"] = request.window or facts.training_size
    return found
