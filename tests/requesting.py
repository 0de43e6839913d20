"""Requests of tests: the options that keep tiny models quick and runs short, unless a test gives its own."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ldm.jobs.inputs import load_inputs
from ldm.jobs.opening import facts_of
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.networks import networks_of
from ldm.prompts.encoding import PromptEncoder
from ldm.requests import Request
from ldm.requests.resolving import REFERENCE, resolved
from ldm.samplers import find_sampler
from ldm.tasks.batch import Batch
from ldm.tasks.generate import generate, task_of
from ldm.tasks.run import Run


def asked(cls: type[Request], **options: Any) -> Request:
    """Return a request of one image a batch and one pass, by DDIM without noise of its own.

    The samplers of the reference take its times unless there is a `schedule`. What is None is the request's
    own default.
    """
    sampler = options.get("sampler") or "ddim"
    own = {"sampler": sampler, "n_samples": 1, "n_iter": 1, "scale": 9.0}
    if sampler == "ddim":
        own["eta"] = 0.0
    request = {name: value for name, value in (own | options).items() if value is not None}
    if "schedule" not in request and find_sampler(sampler).cls.default_spacing is None:
        request["schedule"] = REFERENCE
    return cls(**request)


def ready(model: LatentDiffusion, cls: type[Request], **options: Any) -> Request:
    """Return such a request, loaded and resolved."""
    return resolved(load_inputs(asked(cls, **options)), facts_of(model))


def make_images(
    model: LatentDiffusion,
    cls: type[Request],
    *,
    track: Any = None,
    resume: Any = None,
    **options: Any,
) -> Iterator[Batch]:
    """Carry such a request out, in float32 unless there is a `dtype`."""
    options = options.pop("settings", {}) | options
    dtype = options.pop("dtype", torch.float32)
    return generate(model, ready(model, cls, **options), track, resume, dtype)


def encoder_of(
    model: LatentDiffusion, syntax: str = "plain", dtype: torch.dtype = torch.float32, **options: Any
) -> PromptEncoder:
    """Return what turns prompts into contexts of a model."""
    return PromptEncoder(networks_of(model, dtype), syntax, **options)


def run_of(
    model: LatentDiffusion,
    cls: type[Request],
    *,
    track: Any = None,
    resume: Any = None,
    **options: Any,
) -> Run:
    """Return the run of such a request, not yet begun."""
    options = options.pop("settings", {}) | options
    dtype = options.pop("dtype", torch.float32)
    return Run(model, ready(model, cls, **options), task_of(cls), track, resume, dtype)


def stop_after(steps_of_the_run: int) -> Callable[[Iterator, int], Iterator]:
    """Return a watcher that ends once so many steps of the whole run are taken."""
    left = itertools.count(steps_of_the_run - 1, -1)

    def track(steps: Iterator, total: int) -> Iterator:
        for step in steps:
            yield step
            if next(left) == 0:
                return

    return track
