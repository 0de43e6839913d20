"""Conditionings in the forms of third-party code, and guidance between two of one form.

The model gets them in the form in which the caller gave them; `LatentDiffusion.apply_model` reads them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.diffusion.cond import Cond
from ldm.diffusion.guidance import ClassifierFreeGuidance
from ldm.diffusion.prediction import Prediction, denoiser
from ldm.diffusion.schedule import Schedule
from ldm.errors import InputError

Conditioning = Cond | Tensor | list[Any] | dict[str, Any] | None


class PublishedGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance of a third party's model between conditionings in its own form.

    Args:
        model: has `apply_model` and `parameterization`.
    """

    def __init__(self, model: Any, schedule: Schedule, uncond: Conditioning, guidance_scale: float) -> None:
        def apply_model(x_t: Tensor, t: Tensor, cond: "Cond | Published") -> Tensor:
            return model.apply_model(x_t, t, cond.value if isinstance(cond, Published) else cond)

        denoise = denoiser(apply_model, schedule, model.parameterization)
        super().__init__(denoise, None if uncond is None else Published.of(uncond), guidance_scale)

    def with_conditional(
        self, x_t: Tensor, t: Tensor, cond: Conditioning
    ) -> tuple[Prediction, Prediction | None]:
        return super().with_conditional(x_t, t, Published.of(cond))


class SeparateCalls(PublishedGuidance):
    """Guidance with a call of its own for each half, the conditional first; the halves may differ in form."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Prediction:
        conditional = self.denoise(x_t, t, Published.of(cond))
        if self.uncond is None or self.guidance_scale == 1:
            return conditional
        return Prediction(*map(self._combine, self.denoise(x_t, t, self.uncond), conditional))


@dataclass(frozen=True)
class Published:
    """A conditioning in the caller's own form, which the model gets unchanged: a tensor, list or dict.

    It has what ClassifierFreeGuidance needs: the methods of Cond.
    """

    value: Any

    @classmethod
    def of(cls, value: Conditioning) -> "Cond | Published":
        return value if isinstance(value, Cond) else cls(value)

    def count(self) -> int | None:
        """Return the number of samples that its tensors describe; None without tensors.

        Raises: InputError where they disagree.
        """
        sizes = {len(x) for x in _tensors(self.value)}
        if len(sizes) > 1:
            raise InputError(
                f"the parts of a conditioning describe {sorted(sizes)} samples: expected one number"
            )
        return sizes.pop() if sizes else None

    def join(self, other: "Published") -> "Published | None":
        """Return both along the batch; None where c_concat is None in one alone, as in guess mode.

        Raises: InputError where their forms differ.
        """
        first, second = self.value, other.value
        if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
            if (first.get("c_concat") is None) != (second.get("c_concat") is None):
                return None
        return Published(_join(first, second, "conditioning"))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [x for part in parts for x in _tensors(part)]


def _join(first: Any, second: Any, where: str) -> Any:
    """Join two values of the same form along the batch; `where` names the part in an InputError."""
    if first is None and second is None:
        return None
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return {name: _join(first[name], second[name], f"{where}[{name!r}]") for name in second}
    lists = isinstance(first, (list, tuple)) and isinstance(second, (list, tuple))
    if lists and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return [_join(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(pairs)]
    both = isinstance(first, Tensor) and isinstance(second, Tensor)
    if not both or first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"{where}: the unconditional part is {_form(first)}, the conditional part {_form(second)}; "
            "expected the same names, lengths and shapes"
        )
    return torch.cat([first, second])


def _form(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict of {sorted(value)}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
