"""Guidance: ways to change what the network predicts, each one a wrapper around `denoise`.

    ClassifierFreeGuidance    uncond + w (cond - uncond)                arXiv 2207.12598, eq. 6
    GuidanceRescale           as spread out as without guidance         arXiv 2305.08891, eq. 15 and 16
    GuidanceInterval          guided at some noise levels only          arXiv 2404.07724
    DynamicThreshold          x_0 kept in the range of real latents     arXiv 2205.11487, section 2.3

`Guidance` holds their settings and wraps them round each other in this order, innermost first: the rescaling
needs both halves of the guidance; outside the interval there is neither guidance nor rescaling, only the
conditional pass; and whatever x_0 comes out of that is thresholded, as the sampler should see no other.
All but the first are off unless they are asked for, and what is off is not there at all.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ldm.diffusion.cond import within
from ldm.diffusion.prediction import COMPLETE, Denoise, Prediction, from_x_0, network_output
from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError

LATENT_RANGE = 4.0
"""where the latents of images end, about: autoencoders' scale_factor makes their standard deviation 1"""


class Conditioning(Protocol):
    """What guidance needs of a conditioning: that of ldm.diffusion.cond.Cond."""

    def count(self) -> int | None: ...
    def join(self, other: "Conditioning") -> "Conditioning | None": ...


class ClassifierFreeGuidance:
    """A `denoise` that pushes away from what the network predicts without the prompt.

        prediction = uncond + w (cond - uncond)                      (arXiv 2207.12598, eq. 6)

    x_0, eps and v are affine in each other at fixed x_t and t, and the two weights add up to 1, so it is the
    same in whichever space it is done.

    Both predictions come from one call on the doubled batch, unconditional half first. With scale 1, or
    without `uncond`, it is one plain call. Halves that cannot be joined have a call each: in ControlNet's
    guess mode only the conditional half is controlled.
    """

    def __init__(self, denoise: Denoise, uncond: Conditioning | None, guidance_scale: float):
        self.denoise = denoise
        self.uncond = uncond
        self.guidance_scale = guidance_scale  # may be set between steps

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        return self.with_conditional(x_t, t, cond)[0]

    def with_conditional(
        self, x_t: Tensor, t: Tensor, cond: Conditioning
    ) -> tuple[Prediction, Prediction | None]:
        """Return the guided prediction and the conditional one; None where there was no guidance."""
        if self.uncond is None or self.guidance_scale == 1:
            return self.denoise(x_t, t, cond), None
        for what, part in (("unconditional", self.uncond), ("conditional", cond)):
            if part.count() not in (None, len(x_t)):
                raise InputError(
                    f"the {what} input describes {part.count()} samples for a batch of {len(x_t)}: "
                    "expected one a sample"
                )
        joined = self.uncond.join(cond)
        if joined is None:
            halves = self.denoise(x_t, t, self.uncond), self.denoise(x_t, t, cond)
        else:
            both = self.denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), joined)
            halves = map(Prediction._make, zip(*(x.chunk(2) for x in both), strict=True))
        uncond, conditional = halves
        return Prediction(*map(self._combine, uncond, conditional)), conditional

    def _combine(self, uncond: Tensor, cond: Tensor) -> Tensor:
        return uncond + self.guidance_scale * (cond - uncond)


class GuidanceRescale:
    """Classifier-free guidance whose output is as spread out as the conditional one, against burnt colours.

        rescaled = guided std(cond) / std(guided)                    (arXiv 2305.08891, eq. 15)
        output   = phi rescaled + (1 - phi) guided                   (eq. 16)

    in the network's own space (eps, v or x_0), with the standard deviation over channels and pixels of each
    sample. phi 0 is none; the paper takes 0.7.
    """

    def __init__(self, guided: ClassifierFreeGuidance, phi: float, schedule: Schedule, parameterization: str):
        self.guided = guided
        self.phi = phi
        self.schedule = schedule
        self.parameterization = parameterization

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        prediction, conditional = self.guided.with_conditional(x_t, t, cond)
        if conditional is None:
            return prediction
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        output = network_output(prediction, self.parameterization, alpha, sigma)
        wanted = _spread(network_output(conditional, self.parameterization, alpha, sigma))
        spread = _spread(output)
        ratio = torch.where(spread > 0, wanted / spread, 1.0)  # a constant cannot be spread out
        output = self.phi * (output * ratio) + (1 - self.phi) * output
        return COMPLETE[self.parameterization](x_t, output, alpha, sigma)


class GuidanceInterval:
    """Guidance where low <= t / (N - 1) <= high, and the plain conditional pass, at half the cost, elsewhere.

        w(t) = w inside, 1 outside                                   (arXiv 2404.07724)

    Both ends belong to it. The paper counts in sigma_karras, for which `Schedule.times_of_sigma` gives t.
    """

    def __init__(self, guided: Denoise, plain: Denoise, interval: tuple[float, float], schedule: Schedule):
        self.guided = guided
        self.plain = plain
        self.interval = interval
        self.schedule = schedule

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        inside = within(self.interval, t, self.schedule.num_timesteps)
        count = int(inside.sum())
        if count == len(inside):
            return self.guided(x_t, t, cond)
        if count == 0:
            return self.plain(x_t, t, cond)
        inside = inside.view(-1, *(1,) * (x_t.ndim - 1))  # samples at different times
        pairs = zip(self.guided(x_t, t, cond), self.plain(x_t, t, cond), strict=True)
        return Prediction(*(torch.where(inside, guided, plain) for guided, plain in pairs))


class DynamicThreshold:
    """A `denoise` whose x_0 stays in the range of real latents, against the burnt look of large scales.

        s   = max(quantile_p |x_0|, value)                           (arXiv 2205.11487, section 2.3)
        x_0 = value clip(x_0, -s, s) / s,   eps = (x_t - alpha x_0) / sigma

    with the quantile over channels and pixels of each sample. The paper's images end at value 1; latents,
    of standard deviation 1, at about 4. A sample within the value is left as it is, bit for bit. Unlike
    the `dynamic_threshold` of the reference classes, which scales x_0 by its root mean square and leaves
    eps alone, this keeps x_t = alpha x_0 + sigma eps.
    """

    def __init__(self, denoise: Denoise, percentile: float, schedule: Schedule, value: float = LATENT_RANGE):
        self.denoise = denoise
        self.percentile = percentile  # 0 to 1
        self.schedule = schedule
        self.value = value

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        prediction = self.denoise(x_t, t, cond)
        sizes = prediction.x_0.abs().flatten(1)  # (b, c h w)
        shape = (-1, *(1,) * (x_t.ndim - 1))
        s = sizes.quantile(self.percentile, dim=1).clamp(min=self.value).view(shape)
        x_0 = prediction.x_0.clamp(-s, s) * (self.value / s)
        eps = from_x_0(x_t, x_0, *self.schedule.alpha_sigma(t, x_t)).eps
        changed = (sizes.amax(1) > self.value).view(shape)
        return Prediction(x_0, torch.where(changed, eps, prediction.eps))


@dataclass(frozen=True)
class Guidance:
    """What guidance is asked for; raises InputError for what cannot be.

    Args:
        scale: w; exactly 1 is one plain evaluation a step.
        rescale: phi, 0 (off) to 1.
        interval: (low, high), the training times t / (N - 1) with guidance, 0 clean to 1 noise; None is all.
        threshold: the percentile of |x_0|, above 0 to 1; None is off.
    """

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rescale <= 1:
            raise InputError(f"guidance rescale is {self.rescale}: expected 0 (off) to 1")
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1] <= 1:
            low, high = self.interval
            raise InputError(f"guidance interval is {low:g},{high:g}: expected 0 <= LOW < HIGH <= 1")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise InputError(
                f"dynamic threshold is {self.threshold}: expected a percentile above 0, to 1, such as 0.995"
            )

    def around(
        self, denoise: Denoise, uncond: Conditioning | None, schedule: Schedule, parameterization: str
    ) -> Denoise:
        """Wrap `denoise`, a network of this parameterization, in all that is on."""
        guided = cfg = ClassifierFreeGuidance(denoise, uncond, self.scale)
        if self.rescale:
            guided = GuidanceRescale(cfg, self.rescale, schedule, parameterization)
        if self.interval is not None:
            guided = GuidanceInterval(guided, denoise, self.interval, schedule)
        if self.threshold is not None:
            guided = DynamicThreshold(guided, self.threshold, schedule)
        return guided


def _spread(x: Tensor) -> Tensor:
    """Return the standard deviation of each sample, ready to multiply it.

    Sample by sample, as the order of a sum, and so its last bits, may depend on the size of the batch.
    """
    return torch.stack([sample.std(correction=0) for sample in x]).view(-1, *(1,) * (x.ndim - 1))
