"""Classifier-free guidance (arXiv 2207.12598, eq. 6).

    prediction = uncond + w (cond - uncond)

x_0, eps and v are affine in each other at fixed x_t and t, and the two weights add up to 1, so it is the
same in whichever space it is done.
"""

import torch
from torch import Tensor

from ldm.diffusion.conditioning import Conditioning, batch_size, concat
from ldm.diffusion.prediction import Denoise, Prediction
from ldm.errors import InputError


class ClassifierFreeGuidance:
    """A `denoise` that pushes away from what the network predicts without the prompt.

    Both predictions come from one call on the doubled batch, unconditional half first. With scale 1, or
    without `uncond`, it is one plain call. Where `c_concat` is None in one half alone (ControlNet's guess
    mode: no control there) the halves cannot be joined, and each has its own call.
    """

    def __init__(self, denoise: Denoise, uncond: Conditioning, guidance_scale: float):
        self.denoise = denoise
        self.uncond = uncond
        self.guidance_scale = guidance_scale  # may be set between steps

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        if self.uncond is None or self.guidance_scale == 1:
            return self.denoise(x_t, t, cond)
        for what, part in (("unconditional", self.uncond), ("conditional", cond)):
            if batch_size(part) not in (None, len(x_t)):
                raise InputError(
                    f"the {what} input describes {batch_size(part)} samples for a batch of {len(x_t)}: "
                    "expected one a sample"
                )
        if _only_one_has_concat(self.uncond, cond):
            both = zip(self.denoise(x_t, t, self.uncond), self.denoise(x_t, t, cond), strict=True)
            return Prediction(*(self._combine(*pair) for pair in both))
        both = self.denoise(torch.cat([x_t, x_t]), torch.cat([t, t]), concat(self.uncond, cond))
        return Prediction(*(self._combine(*x.chunk(2)) for x in both))

    def _combine(self, uncond: Tensor, cond: Tensor) -> Tensor:
        return uncond + self.guidance_scale * (cond - uncond)


def _only_one_has_concat(uncond: Conditioning, cond: Conditioning) -> bool:
    if not (isinstance(uncond, dict) and isinstance(cond, dict)) or uncond.keys() != cond.keys():
        return False
    return (uncond.get("c_concat") is None) != (cond.get("c_concat") is None)
