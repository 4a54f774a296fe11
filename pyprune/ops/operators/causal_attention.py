"""Causal attention of whole sequences, as training has it.

q [B, N, T, D], k and v [B, G, T, D], N a multiple of G, a token's values of a head side by side -> softmax(scale q k^T,
keys behind the query left out) v [B, N, T, D], whose memory lies as [B, T, N, D]. log_sums [B, N, T] float32 (float64
for float64) gets log sum exp of each query's scores, which `causal_attention_backward` reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import expect
from pyprune.ops.formulas import wide
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor q, Tensor k, Tensor v, float scale, Tensor(a!) log_sums) -> Tensor"


def scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Of each query with each key [B, N, T, T], minus infinity for keys behind it; products in the dtype of q."""
    expect(q.dim() == k.dim() == 4, f"q, k: four dimensions are expected, not {q.dim()} and {k.dim()}")
    heads, groups = q.shape[1], k.shape[1]
    expect(
        groups > 0 and heads % groups == 0, f"k: a divisor of the {heads} heads of q is expected, not {groups} heads"
    )
    shape = [q.shape[0], groups, *q.shape[2:]]
    expect(list(k.shape) == shape, f"k: {shape} is expected, not {list(k.shape)}")
    products = (q @ repeated(k, q).mT).to(wide(q.dtype)) * scale
    hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
    return products.masked_fill(hidden, -torch.inf)


def repeated(values: Tensor, q: Tensor) -> Tensor:
    """Those of each KV head [B, G, T, D] for each of its query heads [B, N, T, D]."""
    return values.repeat_interleave(q.shape[1] // values.shape[1], 1)


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float, log_sums: Tensor) -> Tensor:
    values = scores(q, k, scale)
    log_sums.copy_(values.logsumexp(-1))
    out = values.softmax(-1).to(q.dtype) @ repeated(v, q)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def fake(q: Tensor) -> Tensor:
    batch, heads, tokens, size = q.shape
    return q.new_empty(batch, tokens, heads, size).transpose(1, 2)


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
