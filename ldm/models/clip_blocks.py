"""The transformer of CLIP's towers, and the image tower (arXiv 2103.00020, section 2.4; ViT: 2010.11929).

    x = x + s_1 attention(LN_1 x)         s: LayerScale (arXiv 2103.17239), if the description has it
    x = x + s_2 mlp(LN_2 x)

Parameter names are the LDM key names: query, key and value are one matrix, in_proj = [q; k; v]. Sizes come
from open_clip's JSON descriptions; options that these blocks do not support are rejected.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.errors import ConfigError
from ldm.models.attention import merge_heads, split_heads

if TYPE_CHECKING:
    from typing import Self


class FrozenEmbedder(nn.Module):
    """What the encoders of prompts and of images have in common: their weights are not trained."""

    def place(self, device: str | None) -> None:
        """Move a module that is built with its weights to `device`; of others, loading decides."""
        if device is not None and not next(self.parameters()).is_meta:
            self.to(device)

    def freeze(self) -> None:
        """Set evaluation mode and disable gradients."""
        self.eval()
        self.requires_grad_(False)

    def encode(self, inputs: Any) -> Tensor:
        """Same as calling the module; third-party code uses this name."""
        return self(inputs)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a tower, from open_clip's description."""

    layers: int = 12
    mlp_ratio: float = 4.0              # width of the MLP over width
    ls_init_value: float | None = None  # initial value of LayerScale; None: no LayerScale

    # options that do not change the result here
    IGNORED = frozenset({"output_tokens"})

    @classmethod
    def read(cls, description: Mapping[str, Any], name: str) -> "Self":
        """Read the sizes from node `name` of a description.

        Raises:
            ConfigError: there is no such node, or it describes another kind of tower.
        """
        node = description.get(name)
        known = [field.name for field in fields(cls)]
        if not isinstance(node, Mapping):
            raise ConfigError(f"the architecture has no {name}; expected embed_dim, text_cfg and vision_cfg")
        other = {key: value for key, value in node.items() if value and key not in {*known, *cls.IGNORED}}
        if other:
            raise ConfigError(
                f"the architecture's {name} has {', '.join(f'{k}: {v}' for k, v in other.items())}; "
                f"CLIP's towers have only {', '.join(known)}"
            )
        sizes = cls(**{key: value for key, value in node.items() if key in known})
        if not isinstance(sizes.layers, int):
            raise ConfigError(
                f"the architecture's {name} has layers: {sizes.layers}, which is a ResNet; expected a number"
            )
        return sizes


@dataclass(frozen=True)
class TextSizes(Sizes):
    """Sizes of a text tower."""

    width: int = 512
    heads: int = 8
    context_length: int = 77
    vocab_size: int = 49408

    IGNORED = Sizes.IGNORED | {"pool_type", "pad_id", "eos_id"}     # pooling, which is not used


@dataclass(frozen=True)
class VisionSizes(Sizes):
    """Sizes of an image tower."""

    width: int = 768
    head_width: int = 64
    patch_size: int = 16
    image_size: int = 224

    @property
    def heads(self) -> int:
        return self.width // self.head_width


class LayerNorm(nn.LayerNorm):
    """Layer norm that returns the dtype of its input, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class LayerScale(nn.Module):
    """One learned factor per channel."""

    def __init__(self, width: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init_value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), which OpenAI's models were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if width % num_heads:
            raise ConfigError(f"a CLIP tower of width {width} cannot be split into {num_heads} heads")
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        # Tokens come first, as in torch's own module: the order of the rows decides the last bit, and
        # existing images are to be reproduced exactly.
        qkv = F.linear(x.transpose(0, 1), self.in_proj_weight, self.in_proj_bias).transpose(0, 1)
        q, k, v = (split_heads(part, self.num_heads) for part in qkv.chunk(3, dim=-1))  # (b, heads, n, d)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        return self.out_proj(merge_heads(out).transpose(0, 1)).transpose(0, 1)          # (b, n, width)


class ResidualAttentionBlock(nn.Module):
    """x + attention(LN x), then x + mlp(LN x)."""

    def __init__(self, sizes: TextSizes | VisionSizes, activation: type[nn.Module]) -> None:
        super().__init__()
        width, hidden = sizes.width, int(sizes.width * sizes.mlp_ratio)
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, sizes.heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, hidden), gelu=activation(), c_proj=nn.Linear(hidden, width))
        )
        scale = sizes.ls_init_value
        self.ls_1, self.ls_2 = (nn.Identity() if scale is None else LayerScale(width, scale) for _ in "12")

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x), mask, causal))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """The blocks, with the LDM key name `resblocks`."""

    def __init__(self, sizes: TextSizes | VisionSizes, quick_gelu: bool) -> None:
        super().__init__()
        activation = QuickGELU if quick_gelu else nn.GELU
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(sizes, activation) for _ in range(sizes.layers))
        self.grad_checkpointing = False

    def forward(self, x: Tensor, mask: Tensor | None = None, causal: bool = False, skip: int = 0) -> Tensor:
        """Run all blocks except the last `skip` on (b, n, width).

        Args:
            mask: broadcastable to (b, heads, n, n), True where a token may attend; it replaces `causal`.
            causal: tokens do not attend to later ones.
        """
        for block in self.resblocks[: len(self.resblocks) - skip]:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, mask, causal, use_reentrant=False)
            else:
                x = block(x, mask, causal)
        return x


class VisionTower(nn.Module):
    """Normalised pixels (b, 3, side, side) -> (b, embed_dim), the projected class token."""

    def __init__(self, embed_dim: int, sizes: VisionSizes, quick_gelu: bool) -> None:
        super().__init__()
        width, patch = sizes.width, sizes.patch_size
        num_tokens = (sizes.image_size // patch) ** 2 + 1
        std = width**-0.5
        self.class_embedding = nn.Parameter(nn.init.normal_(torch.empty(width), std=std))
        self.positional_embedding = nn.Parameter(nn.init.normal_(torch.empty(num_tokens, width), std=std))
        self.proj = nn.Parameter(nn.init.normal_(torch.empty(width, embed_dim), std=std))
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(sizes, quick_gelu)
        self.ln_post = LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)                               # (b, n - 1, width)
        first = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)        # (b, n, width)
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj
