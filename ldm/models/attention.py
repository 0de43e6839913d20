"""Attention blocks of the UNet.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V          (arXiv 1706.03762, eq. 1)
    GEGLU(x) = (W_a x + b_a) * gelu(W_g x + b_g)              (arXiv 2002.05202, eq. 4), exact (erf) gelu

All attention uses torch's scaled_dot_product_attention, so that no tensor grows with the square of the number
of tokens. The logits Q K^T are computed in float32: those of SD 2.x, with 64 channels per head, exceed
65,504, the largest float16. Attribute names are the LDM key names.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Devices whose attention computes logits in the dtype of q. All kernels for CPU, CUDA and XPU accumulate
# float16 and bfloat16 in float32 (torch >= 2.5).
LOGITS_IN_HALF = {"mps"}


def zero_module(module: nn.Module) -> nn.Module:
    """Set all parameters of `module` to zero, so that a residual block starts as the identity; return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """Reshape (b, n, h*d) to (b, h, n, d)."""
    return rearrange(x, "b n (h d) -> b h n d", h=num_heads)


def merge_heads(x: Tensor) -> Tensor:
    """Reshape (b, h, n, d) to (b, n, h*d)."""
    return rearrange(x, "b h n d -> b n (h d)")


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute attention of (b, h, n, d) with logits in float32; `mask` as in scaled_dot_product_attention."""
    if q.dtype != torch.float16 or q.device.type not in LOGITS_IN_HALF:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    with torch.autocast(q.device.type, enabled=False):     # it would convert q, k and v back to float16
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask).half()


class CrossAttention(nn.Module):
    """Attention of `x` to `context`, or to itself without a context."""

    def __init__(
        self,
        query_dim: int,                   # width of x
        context_dim: int | None = None,   # width of the context; None: that of x
        heads: int = 8,
        dim_head: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner_dim = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.dim_head = dim_head
        self.scale = dim_head**-0.5       # of the logits; read by third-party hooks that compute them
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend; `mask` is boolean (b, n_context), True for the keys to attend to."""
        context = x if context is None else context
        q, k, v = (split_heads(y, self.heads) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        if mask is not None:
            mask = mask.flatten(1)[:, None, None, :]               # (b, 1, 1, n_context)
        return self.to_out(merge_heads(attend(q, k, v, mask)))


class GEGLU(nn.Module):
    """Linear layer, gated by the exact gelu of its second half."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        a, gate = self.proj(x).chunk(2, dim=-1)
        return a * F.gelu(gate)


class FeedForward(nn.Module):
    """Two-layer perceptron, gated (GEGLU) or plain, with `mult` times the width inside."""

    def __init__(
        self, dim: int, dim_out: int | None = None, mult: int = 4, glu: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner_dim = dim * mult
        project_in = GEGLU(dim, inner_dim) if glu else nn.Sequential(nn.Linear(dim, inner_dim), nn.GELU())
        self.net = nn.Sequential(project_in, nn.Dropout(dropout), nn.Linear(inner_dim, dim_out or dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """x + attn1(LN x), then x + attn2(LN x, context), then x + ff(LN x).

    With `disable_self_attn`, attn1 attends to the context too, as in the 4x upscaler.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        d_head: int,
        dropout: float = 0.0,
        context_dim: int | None = None,
        gated_ff: bool = True,
        checkpoint: bool = False,
        disable_self_attn: bool = False,
    ) -> None:
        super().__init__()
        self.disable_self_attn = disable_self_attn
        self.use_checkpoint = checkpoint                     # training sets this attribute
        self.attn1 = CrossAttention(dim, context_dim if disable_self_attn else None, n_heads, d_head, dropout)
        self.ff = FeedForward(dim, glu=gated_ff, dropout=dropout)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return run_block(self._forward, x, context, recompute=self.use_checkpoint and self.training)

    def _forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.attn1(self.norm1(x), context if self.disable_self_attn else None) + x
        x = self.attn2(self.norm2(x), context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of a feature map, with a residual connection.

    The projections are 1x1 convolutions (SD 1.x) or linear layers (`use_linear`, SD 2.x). Both compute the
    same function, but the weights in the file have shape (c, c, 1, 1) or (c, c).
    """

    def __init__(
        self,
        in_channels: int,
        n_heads: int,
        d_head: int,
        depth: int = 1,
        dropout: float = 0.0,
        context_dim: int | Sequence[int] | None = None,   # one width, or one per block
        disable_self_attn: bool = False,
        use_linear: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        inner_dim = n_heads * d_head
        context_dims = list(context_dim) if isinstance(context_dim, Sequence) else [context_dim] * depth
        self.use_linear = use_linear
        self.norm = nn.GroupNorm(32, in_channels, eps=1e-6)
        self.proj_in = (
            nn.Linear(in_channels, inner_dim) if use_linear else nn.Conv2d(in_channels, inner_dim, 1)
        )
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                inner_dim, n_heads, d_head, dropout, width, checkpoint=use_checkpoint,
                disable_self_attn=disable_self_attn,
            )
            for width in context_dims
        )
        proj_out = nn.Linear(inner_dim, in_channels) if use_linear else nn.Conv2d(inner_dim, in_channels, 1)
        self.proj_out = zero_module(proj_out)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        _, _, h, w = x.shape
        x_in = x
        x = self.norm(x)
        if not self.use_linear:
            x = self.proj_in(x)
        x = x.flatten(2).transpose(1, 2)                     # (b, h*w, c)
        if self.use_linear:
            x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x, context)
        if self.use_linear:
            x = self.proj_out(x)
        x = x.transpose(1, 2).unflatten(2, (h, w))           # (b, c, h, w)
        if not self.use_linear:
            x = self.proj_out(x)
        return x_in + x    # in this order the sum keeps the memory layout of the surrounding convolutions


class AttentionBlock(nn.Module):
    """Self-attention over pixels, for UNets without text conditioning.

    `qkv` returns 3*c channels, grouped by head and within each head by q, k, v; with
    `use_new_attention_order` they are grouped by q, k, v and then by head.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        num_head_channels: int = -1,      # -1: channels // num_heads
        use_checkpoint: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads if num_head_channels == -1 else channels // num_head_channels
        self.use_checkpoint = use_checkpoint
        self.use_new_attention_order = use_new_attention_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return run_block(self._forward, x, recompute=self.use_checkpoint and self.training)

    def _forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)                                # (b, c, n)
        qkv = self.qkv(self.norm(tokens))                    # (b, 3c, n)
        order = "three h d" if self.use_new_attention_order else "h three d"
        q, k, v = rearrange(qkv, f"b ({order}) n -> three b h n d", three=3, h=self.num_heads)
        # Contiguous, because torch's attention falls back to a matrix of n x n weights for other layouts.
        out = attend(q.contiguous(), k.contiguous(), v.contiguous())
        out = self.proj_out(rearrange(out, "b h n d -> b (h d) n"))
        return (tokens + out).view_as(x)


def run_block(function, *args: Tensor | None, recompute: bool) -> Tensor:
    """Call `function`; with `recompute`, the backward pass recomputes its activations."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(function, *args, use_reentrant=False)
    return function(*args)
