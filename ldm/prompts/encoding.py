"""Prompts -> contexts (b, n, width): chunks through the text encoder, then the weights.

With z (n, width) the states of a chunk, w (n) the weights of its tokens and e those of an empty chunk:

    a1111    z' = w z;  z'' = z' mean(z) / mean(z')      the mean over the whole chunk comes back
    compel   f(z) = e + w (z - e)
             z' = (f(z) + sum_k t_k f(z_k)) / (1 + sum_k t_k),  t_k = tan(pi/2 (1 - w_k))
             over the clause's fragments k with w_k < 1, whose tokens no other token sees in z_k

For compel's clauses c with weights w_c: and = [e + w_c (z_c - e), ...] in sequence, blend = sum_c w_c z_c.
Where every weight is 1 the states are left alone. The formulas are those of AUTOMATIC1111's interface
(emphasis "Original"; of each prompt by itself, where that takes the mean over a batch) and of compel 2
(downweighting by masks). Prompts of different length are made equal by the states of empty chunks.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.errors import InputError
from ldm.prompts.chunks import COMMA_REACH, Chunk, Vocabulary, chunks, count
from ldm.prompts.fragments import Clause, Prompt, preview
from ldm.prompts.syntaxes import parse

LONG_PROMPTS = ("chunk", "cut")
LEAST_WEIGHT = 1e-5     # compel's: tan is infinite at weight 0

logger = logging.getLogger(__name__)


class TextNetworks(Protocol):
    """What runs the text encoder: ldm.networks.Networks."""

    text_encoder: Any
    """has `vocabulary()` and `check_clip_skip(N)`; one without takes plain prompts, and cuts them itself"""
    device: torch.device

    def text(self, tokens: Tensor, clip_skip: int | None, hidden: Tensor | None) -> Tensor: ...
    def text_of(self, prompts: list[str]) -> Tensor: ...


class PromptEncoder:
    """Turns prompts into contexts, by one text encoder and one way of reading.

    Args:
        networks: runs the encoder.
        syntax: a name of ldm.prompts.syntaxes.SYNTAXES.
        clip_skip: 1 is the encoder's last block, 2 the one before it; None is the configuration's layer.
        long_prompts: "chunk" encodes every token, "cut" only the first chunk, as the reference does.

    Raises: InputError for what the encoder cannot do.
    """

    def __init__(
        self,
        networks: TextNetworks,
        syntax: str = "plain",
        clip_skip: int | None = None,
        long_prompts: str = "chunk",
    ) -> None:
        if long_prompts not in LONG_PROMPTS:
            raise InputError(f"long prompts {long_prompts!r}; expected {' or '.join(LONG_PROMPTS)}")
        self.networks = networks
        self.encoder = networks.text_encoder
        self.syntax = syntax
        self.clip_skip = clip_skip
        self.long_prompts = long_prompts
        self.comma_reach = COMMA_REACH if syntax == "a1111" else 0
        self._vocabulary: Vocabulary | None = None
        self._empty: Tensor | None = None
        self._said: set[str] = set()
        parse("", syntax)
        if not hasattr(self.encoder, "vocabulary"):
            if syntax != "plain" or clip_skip is not None:
                raise InputError(f"{type(self.encoder).__name__} takes plain prompts only, and no clip skip")
        elif clip_skip is not None:
            self.encoder.check_clip_skip(clip_skip)

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = self.encoder.vocabulary()
        return self._vocabulary

    def encode(self, prompts: list[str], name: str = "prompt") -> Tensor:
        """Return the contexts (b, n, width) of prompts, n being that of the longest; see `contexts`."""
        return torch.cat(self.pad_to_longest(self.contexts(prompts, name)))

    def contexts(self, prompts: list[str], name: str = "prompt") -> list[Tensor]:
        """Return the context (1, n, width) of each prompt.

        Args:
            name: what the prompts are called where one of them is too long for one chunk.
        """
        if not hasattr(self.encoder, "vocabulary"):
            return list(self.networks.text_of(prompts).split(1))
        read = [parse(text, self.syntax) for text in prompts]
        cut = [[self._chunks(clause) for clause in prompt.clauses] for prompt in read]
        for text, prompt, clauses in zip(prompts, read, cut, strict=True):
            self._say_length(name, text, prompt, clauses)
        rows = iter(self._encode_rows([row for clauses in cut for row in clauses]))
        return [self._joined(prompt, [next(rows) for _ in prompt.clauses]) for prompt in read]

    def pad_to_longest(self, contexts: Sequence[Tensor]) -> list[Tensor]:
        """Return contexts (b, n, width) with the states of empty chunks appended to the shorter ones."""
        longest = max(context.shape[1] for context in contexts)
        return [self._padded(context, longest) for context in contexts]

    def _chunks(self, clause: Clause) -> list[Chunk]:
        made = chunks(clause, self.vocabulary, self.comma_reach)
        return made[:1] if self.long_prompts == "cut" else made

    def _encode_rows(self, rows: list[list[Chunk]]) -> list[Tensor]:
        """Return the weighted states (1, n, width) of every row of chunks.

        The first chunks of all rows go through the encoder together, then the second ones, and so on: prompts
        that fit one chunk are encoded as they are without long ones in the batch, to the bit.
        """
        encoded: list[list[Tensor]] = [[] for _ in rows]
        for i in range(max(len(row) for row in rows)):
            there = [k for k, row in enumerate(rows) if i < len(row)]
            states = self._states([rows[k][i] for k in there])
            for k, z in zip(there, states.split(1), strict=True):
                encoded[k].append(self._weighted(z, rows[k][i], rows[k]))
        return [torch.cat(states, dim=1) for states in encoded]

    def _states(self, batch: list[Chunk], hidden: Tensor | None = None) -> Tensor:
        tokens = torch.tensor([chunk.tokens for chunk in batch], device=self.networks.device)
        return self.networks.text(tokens, self.clip_skip, hidden)                 # (b, n, width)

    def _weighted(self, z: Tensor, chunk: Chunk, row: list[Chunk]) -> Tensor:
        """Return the states z (1, n, width) of a chunk, one of a row, with its weights."""
        if all(weight == 1 for weight in chunk.weights):
            return z
        if z.shape[1] != len(chunk.tokens):
            raise InputError("this text encoder gives one state for a whole prompt; leave weights out")
        w = torch.tensor(chunk.weights, device=z.device, dtype=z.dtype)[None, :, None]
        if self.syntax == "a1111":
            weighted = z * w
            return weighted * (z.mean() / weighted.mean())
        return self._compel(z, w, chunk, row)

    def _compel(self, z: Tensor, w: Tensor, chunk: Chunk, row: list[Chunk]) -> Tensor:
        weights = {k: weight for c in row for k, weight in zip(c.owners, c.weights, strict=True)}
        share_of = {
            k: math.tan(math.pi / 2 * (1 - max(weight, LEAST_WEIGHT)))
            for k, weight in weights.items()
            if weight < 1
        }
        here = [k for k in share_of if k in chunk.owners]
        elsewhere = sum(share for k, share in share_of.items() if k not in here)        # there z_k = z
        states, shares = z, [1 + elsewhere, *(share_of[k] for k in here)]
        if here:
            owners = torch.tensor(chunk.owners, device=z.device)
            hidden = owners == torch.tensor(here, device=z.device)[:, None]             # (k, n)
            states = torch.cat([z, self._states([chunk] * len(here), hidden)])          # (1 + k, n, width)
        total = sum(shares)     # divided by before they are tensors: half precision ends at 65504
        share = torch.tensor([s / total for s in shares], device=z.device, dtype=z.dtype)[:, None, None]
        e = self._empty_states()
        return (share * (e + w * (states - e))).sum(dim=0, keepdim=True)

    def _joined(self, prompt: Prompt, clauses: list[Tensor]) -> Tensor:
        """Join the contexts (1, n, width) of a prompt's clauses by their weights."""
        if prompt.blend:
            return sum(w * z for w, z in zip(prompt.weights, self.pad_to_longest(clauses), strict=True))
        scaled = [
            z if w == 1 else (e := self._padded(z[:, :0], z.shape[1])) + w * (z - e)
            for w, z in zip(prompt.weights, clauses, strict=True)
        ]
        return torch.cat(scaled, dim=1)

    def _padded(self, context: Tensor, length: int) -> Tensor:
        missing = length - context.shape[1]
        if not missing:
            return context
        empty = self._empty_states().to(context.dtype)
        padding = empty.repeat(1, missing // empty.shape[1], 1)
        return torch.cat([context, padding.expand(len(context), -1, -1)], dim=1)

    def _empty_states(self) -> Tensor:
        if self._empty is None:
            self._empty = self._states(chunks(((),), self.vocabulary)[:1])
        return self._empty

    def _say_length(self, name: str, text: str, prompt: Prompt, clauses: list[list[Chunk]]) -> None:
        """Log once for each prompt that exceeds a chunk what becomes of it."""
        vocabulary, room = self.vocabulary, self.vocabulary.room
        tokens = sum(count(clause, vocabulary) for clause in prompt.clauses)
        if tokens <= room or text in self._said:
            return
        self._said.add(text)
        if self.long_prompts == "cut":
            kept = sum(owner >= 0 for row in clauses for chunk in row for owner in chunk.owners)
            logger.warning("%s has %d tokens: cut after %d (%s)", name, tokens, kept, preview(text))
        else:
            parts = sum(len(row) for row in clauses)
            said = "%s has %d tokens: encoded in %d parts of %d (%s)"
            logger.info(said, name, tokens, parts, room, preview(text))
