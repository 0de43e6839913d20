"""Prompts of a batch as contexts, which may differ in length.

A context that is padded to the length of a longer one means something else to the network. So samples whose
contexts have different lengths are evaluated separately, each without that padding.
"""

import torch
from torch import Tensor

from ldm.diffusion.cond import Cond
from ldm.diffusion.prediction import Denoise, Prediction
from ldm.networks import Networks
from ldm.prompts.encoding import PromptEncoder
from ldm.requests import Request


class Text:
    """The prompts of a run as contexts.

    Raises: InputError for a syntax or options that the model's text encoder cannot honour.
    """

    def __init__(self, networks: Networks, request: Request) -> None:
        self.request = request
        self.has_encoder = networks.text_encoder is not None
        self._encoder = PromptEncoder(
            networks,
            getattr(request, "prompt_syntax", "plain"),
            getattr(request, "clip_skip", None),
            getattr(request, "long_prompts", "chunk"),
        )
        self._unconds: list[Tensor] = []
        self._lengths: list[int] = []  # tokens of each context of the batch, were it alone

    def contexts(self, prompts: list[str], one_by_one: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return the contexts (b, n, width) of a batch of prompts and of the unconditional pass.

        The second is None without guidance; both are None for a model without a text encoder.
        """
        if not self.has_encoder:
            return None, None
        conds = self._encoded(prompts, "prompt", one_by_one)
        lengths = [cond.shape[1] for cond in conds]
        if self.request.scale == 1:
            contexts = torch.cat(self._encoder.pad_to_longest(conds)), None
        else:
            if not self._unconds:  # the same text for every batch
                negative = [self.request.negative_prompt] * self.request.n_samples
                self._unconds = self._encoded(negative, "negative prompt", one_by_one)
            unconds = self._unconds[: len(conds)]
            lengths = [max(length, unconds[0].shape[1]) for length in lengths]
            contexts = torch.cat(self._encoder.pad_to_longest([*conds, *unconds])).chunk(2)
        self._lengths[:] = lengths
        return contexts

    def separately(self, denoise: Denoise) -> Denoise:
        """Return `denoise` for batches that `contexts` made; see `one_by_one`."""
        return one_by_one(denoise, self._lengths, self.request.exact)

    def _encoded(self, prompts: list[str], name: str, one_by_one: bool) -> list[Tensor]:
        """Return the context (1, n, width) of each."""
        parts = [[prompt] for prompt in prompts] if one_by_one else [prompts]
        return [context for part in parts for context in self._encoder.contexts(part, name)]


def one_by_one(denoise: Denoise, lengths: list[int], exact: bool) -> Denoise:
    """Evaluate groups of samples separately where batching would change the result.

    Args:
        lengths: of the context of each sample of a batch, of which guidance evaluates a multiple.
        exact: evaluate every sample by itself, because some kernels round differently in other batches.
    """

    def separate(x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
        wanted = (lengths or [0]) * (len(x_t) // max(len(lengths), 1))
        groups: dict[tuple[int, int], list[int]] = {}
        for i, length in enumerate(wanted):
            groups.setdefault((length, i if exact else 0), []).append(i)
        if len(groups) < 2:
            return denoise(x_t, t, cond)
        parts = [
            denoise(x_t[rows], t[rows], cond.take(rows).with_context_length(length))
            for (length, _), rows in groups.items()
        ]
        order = torch.tensor(sum(groups.values(), []), device=x_t.device).argsort()
        return Prediction(*(torch.cat(values)[order] for values in zip(*parts, strict=True)))

    return separate
