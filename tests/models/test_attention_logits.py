"""Attention logits are in float32, whatever the dtype of q and k: float16 ends at 65,504."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ldm.models import attention
from ldm.models.attention import attend

HEAD_DIMS = [64, 40]  # SD 2.x, SD 1.x


def heads(head_dim, dtype, device="cpu"):
    """Return q, k, v whose products pass 65,504, though nothing in them does."""
    shape = (1, 2, 48, head_dim)
    q, k, v = (factor * torch.randn(shape, device=device) for factor in (60.0, 60.0, 1.0))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    assert (q.float() @ k.float().transpose(-1, -2)).abs().max() > 65_504
    return q, k, v


def exact(q, k, v):
    logits = q.double() @ k.double().transpose(-1, -2) / math.sqrt(q.shape[-1])
    return logits.softmax(dim=-1) @ v.double()


def check(out, q, k, v):
    assert out.dtype == v.dtype
    torch.testing.assert_close(out.double(), exact(q, k, v), rtol=0, atol=2 * torch.finfo(v.dtype).eps)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_naive_product_would_overflow(head_dim):
    q, k, _ = heads(head_dim, torch.float16)
    assert not torch.isfinite(q @ k.transpose(-1, -2)).all()


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=lambda b: b.name)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_kernels_of_the_cpu_keep_them_in_float32(backend, head_dim, dtype):
    q, k, v = heads(head_dim, dtype)
    with sdpa_kernel(backend):
        check(attend(q, k, v), q, k, v)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "backend",
    [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH],
    ids=lambda b: b.name,
)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_kernels_of_cuda_keep_them_in_float32(backend, head_dim, dtype):
    q, k, v = heads(head_dim, dtype, "cuda")
    with sdpa_kernel(backend):
        check(attend(q, k, v), q, k, v)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_where_a_device_would_multiply_in_half_precision_they_are_widened(monkeypatch, head_dim):
    seen = []
    kernel = attention.F.scaled_dot_product_attention

    def spy(q, k, v, **options):
        seen.append((q.dtype, k.dtype, v.dtype, torch.is_autocast_enabled("cpu")))
        return kernel(q, k, v, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(attention, "LOGITS_IN_HALF", {"cpu"})
    q, k, v = heads(head_dim, torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        check(attend(q, k, v), q, k, v)
    assert seen == [(torch.float32,) * 3 + (False,)]
    for dtype in (torch.bfloat16, torch.float32):  # which reach as far as they must
        attend(*heads(head_dim, dtype))
    assert [dtypes[0] for dtypes in seen[1:]] == [torch.bfloat16, torch.float32]
