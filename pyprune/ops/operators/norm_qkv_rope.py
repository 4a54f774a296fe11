"""RMSNorm, Q/K/V projection, q/k-norm, RoPE and the append to the KV cache.

x [B, T, H] -> RMSNorm (norm [H]) -> q [N*D, H], k and v [G*D, H] (+ biases) -> q/k-norm [D] where given -> RoPE with
cos, sin [P, D/2] float32 at positions [B, T] int64 -> k and v written to the caches [B', G, L, D] (B' >= B) at [b, :,
slots[b, t]]; slots [B, T] int64 are the positions where not given. Gives q [B, T, N, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import check_places, skipped
from pyprune.ops.formulas import linear, rms_norm, rotate
from pyprune.ops.specification import Operator

SCHEMA = (
    "(Tensor x, Tensor norm, float eps, Tensor q_weight, Tensor k_weight, Tensor v_weight, "
    "Tensor? q_bias, Tensor? k_bias, Tensor? v_bias, Tensor? q_norm, Tensor? k_norm, Tensor cos, Tensor sin, "
    "Tensor positions, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor? skip=None, int sublayer=0, "
    "Tensor? slots=None) -> Tensor"
)


def reference(
    x: Tensor, norm: Tensor, eps: float, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
    q_bias: Tensor | None, k_bias: Tensor | None, v_bias: Tensor | None, q_norm: Tensor | None, k_norm: Tensor | None,
    cos: Tensor, sin: Tensor, positions: Tensor, k_cache: Tensor, v_cache: Tensor,
    skip: Tensor | None = None, sublayer: int = 0, slots: Tensor | None = None,
) -> Tensor:  # fmt: skip
    batch, tokens, _ = x.shape
    head_dim, rows = k_cache.shape[3], k_cache.shape[2]
    check_places("positions", positions, (batch, tokens), len(cos) if slots is not None else min(rows, len(cos)))
    if slots is None:
        slots = positions
    else:
        check_places("slots", slots, (batch, tokens), rows)
    if skipped(skip, sublayer):
        return x.new_zeros(batch, tokens, q_weight.shape[0] // head_dim, head_dim)
    h = rms_norm(x, norm, eps)
    q = linear(h, q_weight, q_bias).view(batch, tokens, -1, head_dim)
    k = linear(h, k_weight, k_bias).view(batch, tokens, -1, head_dim)
    v = linear(h, v_weight, v_bias).view(batch, tokens, -1, head_dim)
    if q_norm is not None:
        q = rms_norm(q, q_norm, eps)
    if k_norm is not None:
        k = rms_norm(k, k_norm, eps)
    cos, sin = cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    row = torch.arange(batch, device=x.device).unsqueeze(1)
    k_cache[row, :, slots] = k.to(k_cache.dtype)
    v_cache[row, :, slots] = v.to(v_cache.dtype)
    return q.to(x.dtype)


def fake(x: Tensor, q_weight: Tensor, k_cache: Tensor) -> Tensor:
    head_dim = k_cache.shape[3]
    return x.new_empty(x.shape[0], x.shape[1], q_weight.shape[0] // head_dim, head_dim)


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu", "gpu"))
