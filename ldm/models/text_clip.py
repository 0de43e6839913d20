"""The text encoder of SD 1.x: CLIP ViT-L/14's text tower (arXiv 2103.00020, section 2.4).

12 causal blocks of width 768 with quick-gelu, x * sigmoid(1.702 x). Tokens are padded with the end token
(49407), no padding mask is used, and the output is taken after the final layer norm. Parameter names are
those of the reference checkpoints (`transformer.text_model...`); newer releases of transformers nest them
differently, which is why the tower is written out here.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.clip_files import VIT_L_14
from ldm.errors import ConfigError, InputError
from ldm.models.attention import merge_heads, split_heads
from ldm.models.clip_blocks import FrozenEmbedder, quick_gelu
from ldm.prompts.chunks import Vocabulary
from ldm.prompts.tokenizer import Tokenizer

LAYERS = ("last", "pooled", "hidden")

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


class SelfAttention(nn.Module):
    """Causal multi-head attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(f(x), self.num_heads) for f in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out_proj(merge_heads(out))


class MLP(nn.Module):
    """Two layers with the tower's activation between."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nn.Module):
    """x + attention(LN x), then x + mlp(LN x)."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.self_attn = SelfAttention(width, config["num_attention_heads"])
        self.layer_norm1 = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.mlp = MLP(width, config["intermediate_size"], config["hidden_act"])
        self.layer_norm2 = nn.LayerNorm(width, eps=config["layer_norm_eps"])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nn.Module):
    """Token plus position embedding. `position_ids` is in reference files and absent from newer ones."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        length, width = config["max_position_embeddings"], config["hidden_size"]
        self.token_embedding = nn.Embedding(config["vocab_size"], width)
        self.position_embedding = nn.Embedding(length, width)
        self.register_buffer("position_ids", torch.arange(length)[None])

    def materialise_buffers(self, device: torch.device | str) -> None:
        self.position_ids = torch.arange(self.position_ids.shape[1], device=device)[None]

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Embed ids (b, n), or add positions to token embeddings (b, n, width) that are given instead."""
        tokens = self.token_embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is not None:
            return tokens + self.position_embedding(position_ids)
        return tokens + self.position_embedding.weight[: tokens.shape[1]]


class Layers(nn.Module):
    """The blocks, under the reference name `encoder.layers`."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config["num_hidden_layers"]))


@dataclass
class TextOutput:
    """What the tower gives, by the names of transformers; it can be indexed as theirs too."""

    last_hidden_state: Tensor
    """(b, n, width) after the final layer norm"""
    pooler_output: Tensor
    """(b, width) of the end token"""
    hidden_states: tuple[Tensor, ...] | None = None
    """(b, n, width) before each block and after the last, without the final layer norm"""

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the fields that are given, in order."""
        return tuple(value for value in vars(self).values() if value is not None)

    def __getitem__(self, key: str | int | slice) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


class TextModel(nn.Module):
    """Token ids -> hidden states."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.final_layer_norm = nn.LayerNorm(config["hidden_size"], eps=config["layer_norm_eps"])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TextOutput | tuple[Any, ...]:
        """Encode ids (b, n).

        Args:
            attention_mask: (b, n), 0 where no other token may look.
            output_hidden_states: give those too.
            return_dict: False asks for a tuple.
        """
        mask = None if attention_mask is None else causal_mask(attention_mask == 0)[:, None]
        hidden_states = [self.embeddings(input_ids=input_ids, position_ids=position_ids)]
        for layer in self.encoder.layers:
            hidden_states.append(layer(hidden_states[-1], mask))
        last = self.final_layer_norm(hidden_states[-1])
        end = input_ids.argmax(dim=1)                     # the end token has the largest id
        pooled = last[torch.arange(len(last), device=last.device), end.to(last.device)]
        output = TextOutput(last, pooled, tuple(hidden_states) if output_hidden_states else None)
        return output.to_tuple() if return_dict is False else output


class CLIPTextModel(nn.Module):
    """Holds the tower under the reference name `text_model`, and is called as that of transformers."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.text_model = TextModel(config)

    def forward(self, *args: Any, **kwargs: Any) -> TextOutput | tuple[Any, ...]:
        """Encode ids (b, n); arguments as those of TextModel."""
        return self.text_model(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.embeddings.token_embedding = value


class FrozenTextEmbedder(FrozenEmbedder):
    """Prompts -> states (b, n, width).

    A subclass has `max_length`, `tokenizer`, `tokenize`, `encode_tokens`, `padding()` and `input_device()`.
    """

    def vocabulary(self) -> Vocabulary:
        """Return the vocabulary for splitting prompts into chunks."""
        tokenizer = self.tokenizer
        start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
        return Vocabulary(tokenizer.encode, start, end, pad=self.padding(), context_length=self.max_length)

    def forward(self, prompts: list[str] | str) -> Tensor:
        """Encode prompts to (b, max_length, width)."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        return self.encode_tokens(self.tokenize(prompts).to(self.input_device()))


class FrozenCLIPEmbedder(FrozenTextEmbedder):
    """Prompts -> (b, 77, 768), by CLIP's text tower.

    Args:
        version: name of the reference weights; kept for information, never downloaded.
        max_length: tokens a prompt.
        layer: "last" (after the final norm), "pooled" (its end token, (b, 1, width)) or "hidden" (before
            block `layer_idx`, without the norm).
        text_config: sizes by their Hugging Face names, where they differ from ViT-L/14's.

    Raises:
        ConfigError: an unknown layer, or an index beyond the blocks.
    """

    def __init__(
        self,
        version: str | None = "openai/clip-vit-large-patch14",
        device: str | None = None,
        max_length: int = 77,
        freeze: bool = True,
        layer: str = "last",
        layer_idx: int | None = None,
        text_config: dict | None = None,
    ) -> None:
        super().__init__()
        config = {**VIT_L_14, **(text_config or {})}
        blocks = config["num_hidden_layers"]
        if layer not in LAYERS:
            raise ConfigError(f"FrozenCLIPEmbedder: layer {layer!r}; expected one of {', '.join(LAYERS)}")
        if layer == "hidden" and (layer_idx is None or abs(layer_idx) > blocks):
            raise ConfigError(f"FrozenCLIPEmbedder: layer_idx {layer_idx}; expected -{blocks}..{blocks}")
        self.transformer = CLIPTextModel(config)
        self.version = version
        self.max_length = max_length
        self.layer = layer
        self.layer_idx = layer_idx
        if freeze:
            self.freeze()
        self.place(device)

    def input_device(self) -> torch.device:
        # Not of the token embedding, in whose place third-party code puts modules without a weight.
        return self.transformer.text_model.final_layer_norm.weight.device

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(context_length=self.max_length)

    def padding(self) -> int:
        return self.tokenizer.eot_token_id

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Return ids (b, max_length): start, text, end tokens; a long text is cut before the end."""
        end = self.tokenizer.eot_token_id
        ids = self.tokenizer(list(prompts), self.max_length)
        past_end = (ids == end).cumsum(dim=1) > 0
        return ids.masked_fill(past_end, end)

    def check_clip_skip(self, clip_skip: int) -> None:
        """Raise InputError unless the states before the last (clip_skip - 1) blocks can be taken."""
        require_blocks(clip_skip, len(self.transformer.text_model.encoder.layers))

    def encode_tokens(
        self, tokens: Tensor, clip_skip: int | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Encode ids (b, n) to (b, n, width), or (b, 1, width) for "pooled".

        Args:
            clip_skip: leave out the last (clip_skip - 1) blocks, never the final layer norm: 1 is the last
                block; None is the layer of the configuration.
            hidden: (b, n) true where no other token may look.
        """
        output = self.transformer(
            input_ids=tokens,
            attention_mask=None if hidden is None else ~hidden,
            output_hidden_states=clip_skip is not None or self.layer == "hidden",
        )
        if clip_skip is not None:
            return self.transformer.text_model.final_layer_norm(output.hidden_states[-clip_skip])
        if self.layer == "hidden":
            return output.hidden_states[self.layer_idx]
        return output.last_hidden_state if self.layer == "last" else output.pooler_output[:, None]


def require_blocks(clip_skip: int, num_blocks: int) -> None:
    """Raise InputError unless (clip_skip - 1) blocks can be left out of `num_blocks`."""
    if not 1 <= clip_skip <= num_blocks:
        raise InputError(f"clip skip {clip_skip}; this model's text encoder takes 1 to {num_blocks}")


def causal_mask(hidden: Tensor) -> Tensor:
    """Return (b, n, n) true where a token may look: not ahead, and at none that is hidden (b, n)."""
    length = hidden.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=hidden.device).tril()
    return causal & ~hidden[:, None]
