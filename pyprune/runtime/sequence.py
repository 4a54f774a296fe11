"""Whole sequences through a decoder: what scoring, calibration, evaluation and prefill are made of.

x is `[N, T, hidden]`: N sequences of T tokens at positions 0 .. T-1, causal. On CPUs activations are float32 whatever
the weights' dtype; elsewhere they have the weights' dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyprune import ops
from pyprune.models.decoder import FFN, MHA, Block, Decoder
from pyprune.ops.weight_formats import format_of
from pyprune.runtime.attention import runs_operator


def activation_dtype(decoder: Decoder) -> torch.dtype:
    """The dtype of the residual stream: float32 on CPUs (free there, and exact), the weights' own elsewhere."""
    return torch.float32 if decoder.device.type == "cpu" else decoder.dtype


def embed(decoder: Decoder, input_ids: Tensor) -> Tensor:
    """Embedding rows of `input_ids [N, T]`: x `[N, T, hidden]`. InputError for a decoder without weights."""
    decoder.require_weights()
    rows = F.embedding(input_ids.to(decoder.device, torch.int64), decoder.embedding)
    if (stored_as := format_of(rows)) is not None:
        rows = stored_as.decoded(rows.flatten(0, 1), len(decoder.norm)).unflatten(0, input_ids.shape)
    return rows.to(activation_dtype(decoder))


def attention_context(mha: MHA, x: Tensor, cos: Tensor, sin: Tensor, eps: float, mask: Tensor | None = None) -> Tensor:
    """Input of the output projection, `[N, T, heads*head_dim]`: softmax(q k^T / sqrt(head_dim)) v, heads side by side.

    cos, sin: `[>= T, head_dim/2]` (`Rope.tables`, of a prompt of T tokens). mask: bool `[N, T]`, False where a token is
    padding, not to be seen.
    """
    batch, tokens, _ = x.shape
    keys = x.new_empty(batch, mha.kv_heads, tokens, mha.head_dim)
    values = torch.empty_like(keys)
    positions = torch.arange(tokens, device=x.device).expand(batch, tokens).contiguous()
    q = rotated_queries(mha, x, eps, cos, sin, positions, keys, values)
    if x.device.type == "cpu" and mask is None and runs_operator(tokens, x.device):
        context = ops.decode_attention(q, keys, values, positions, mha.head_dim**-0.5, None, 0, None, mha.window)
        return context.flatten(2)
    seen = visible(tokens, mha.window, mask, x.device)
    context = F.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=seen, is_causal=seen is None, enable_gqa=mha.group > 1
    )
    return context.transpose(1, 2).reshape(batch, tokens, mha.heads * mha.head_dim)


def rotated_queries(
    mha: MHA, x: Tensor, eps: float, cos: Tensor, sin: Tensor, positions: Tensor, keys: Tensor, values: Tensor,
    skip: Tensor | None = None, sublayer: int = 0, slots: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Rotated queries `[B, T, heads, head_dim]` of x `[B, T, hidden]`; keys and values are written to their caches:
    `ops.norm_qkv_rope` with a sublayer's weights."""
    return ops.norm_qkv_rope(
        x, mha.norm, eps, mha.q.weight, mha.k.weight, mha.v.weight, mha.q.bias, mha.k.bias, mha.v.bias,
        mha.q_norm, mha.k_norm, cos, sin, positions, keys, values, skip, sublayer, slots,
    )  # fmt: skip


def visible(tokens: int, window: int, mask: Tensor | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees, bool `[T, T]` or `[N, 1, T, T]`; None where that is plain causal attention."""
    if mask is None and (window == 0 or window >= tokens):
        return None
    square = torch.ones(tokens, tokens, dtype=torch.bool, device=device)
    seen = square.tril()
    if window:
        seen &= square.triu(1 - window)
    if mask is None:
        return seen
    itself = torch.eye(tokens, dtype=torch.bool, device=device)  # a query always sees itself: padding rows stay finite
    return ((seen & mask[:, None, :].to(device)) | itself).unsqueeze(1)


def ffn_activation(ffn: FFN, x: Tensor, eps: float) -> Tensor:
    """Input of the down projection, `[N, T, width]`: silu(gate(h)) * up(h) with h = RMSNorm(x)."""
    return ops.norm_gate_up(x, ffn.norm, eps, ffn.gate.weight, ffn.up.weight, ffn.gate.bias, ffn.up.bias)


def add_mha(mha: MHA, x: Tensor, cos: Tensor, sin: Tensor, eps: float, mask: Tensor | None = None) -> Tensor:
    """x + MHA(RMSNorm(x))."""
    return ops.linear_residual(attention_context(mha, x, cos, sin, eps, mask), mha.o.weight, mha.o.bias, x)


def add_ffn(ffn: FFN, x: Tensor, eps: float) -> Tensor:
    """x + FFN(RMSNorm(x))."""
    return ops.linear_residual(ffn_activation(ffn, x, eps), ffn.down.weight, ffn.down.bias, x)


def run_block(block: Block, x: Tensor, cos: Tensor, sin: Tensor, eps: float, mask: Tensor | None = None) -> Tensor:
    """One block, whichever sublayers it has."""
    if block.mha is not None:
        x = add_mha(block.mha, x, cos, sin, eps, mask)
    return x if block.ffn is None else add_ffn(block.ffn, x, eps)
