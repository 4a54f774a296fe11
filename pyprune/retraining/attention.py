"""Attention of training batches by operators of ours, forth and back.

transformers hands attention to a function of the name in the model's configuration. Ours takes whole sequences without
padding, on a CPU; all else (padded batches, windows, other devices) goes to torch's as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyprune import ops

NAME = "pyprune_causal"


def fuse_attention(model: nn.Module) -> bool:
    """Let the attention of a transformers model that uses torch's run so in training; whether it does."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    config: Any = model.config
    if config._attn_implementation != "sdpa":
        return False

    def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Any:
        if mask is not None or not _takes(module, q, k, v, options):
            return sdpa_attention_forward(module, q, k, v, mask, **options)
        scale = options.get("scaling") or q.shape[-1] ** -0.5
        return causal_attention(q, k, v, scale).transpose(1, 2), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    return True


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T, causal) v `[B, N, T, D]`, differentiable; q `[B, N, T, D]`, k and v `[B, G, T, D]`."""
    return _CausalAttention.apply(q, k, v, scale)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        log_sums = q.new_empty(q.shape[:-1], dtype=dtype)
        out = ops.operator_for("causal_attention", q.dtype)(q, k, v, scale, log_sums)
        ctx.save_for_backward(q, k, v, out, log_sums)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, log_sums = ctx.saved_tensors
        slopes = [torch.empty_like(t.transpose(1, 2), memory_format=torch.contiguous_format) for t in (q, k, v)]
        dq, dk, dv = (t.transpose(1, 2) for t in slopes)
        slope = slope if slope.stride(-1) == 1 else slope.contiguous()
        backward = ops.operator_for("causal_attention_backward", q.dtype)
        backward(slope, q, k, v, out, log_sums, ctx.scale, dq, dk, dv)
        return dq, dk, dv, None


def _takes(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> bool:
    """Whether these are whole causal sequences that the kernels compute."""
    return (
        q.device.type == "cpu"
        and ops.native.selected_isa() is not None
        and q.dtype == k.dtype == v.dtype
        and q.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and q.shape[2] == k.shape[2] > 1
        and k.shape == v.shape
        and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        and getattr(module, "is_causal", True)
        and options.get("is_causal") is not False
        and not options.get("dropout")
        and options.get("position_bias") is None
        and options.get("softcap") is None
        and options.get("s_aux") is None
    )
