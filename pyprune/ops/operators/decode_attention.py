"""Attention of new tokens over the KV cache.

softmax(scale * q k^T) v for q [B, T, N, D] against caches [B', G, L, D]: query (b, t) sees cache rows first[b] ..
positions[b, t], of them the last `window` where window > 0 (a sliding window); first [B] int64 is 0 where not given. A
query always sees its own row. Rows between the first and the last that any query of a sequence sees must hold finite
numbers. Query head n uses KV head n // (N / G). Gives [B, T, N, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import check_places, expect, skipped
from pyprune.ops.formulas import wide
from pyprune.ops.results import rows_to_project
from pyprune.ops.specification import Operator

SCHEMA = (
    "(Tensor q, Tensor k_cache, Tensor v_cache, Tensor positions, float scale, Tensor? skip=None, "
    "int sublayer=0, Tensor? first=None, int window=0) -> Tensor"
)


def reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    scale: float,
    skip: Tensor | None = None,
    sublayer: int = 0,
    first: Tensor | None = None,
    window: int = 0,
) -> Tensor:
    batch, tokens, heads, _ = q.shape
    check_places("positions", positions, (batch, tokens), k_cache.shape[2])
    if first is not None:
        check_places("first", first, (batch,), k_cache.shape[2])
    expect(window >= 0, f"window: {window} given; 0 (none) or a positive number is expected")
    if skipped(skip, sublayer):
        return q.new_zeros(q.shape)
    group = heads // k_cache.shape[1]
    length = int(positions.max()) + 1 if positions.numel() else 0
    k = k_cache[:batch, :, :length].repeat_interleave(group, dim=1)
    v = v_cache[:batch, :, :length].repeat_interleave(group, dim=1)
    row, own = torch.arange(length, device=q.device), positions.unsqueeze(-1)
    seen = row <= own
    if window:
        seen &= row > own - window
    if first is not None:
        seen &= row >= first[:, None, None]
    seen |= row == own
    v = v.masked_fill(~seen.any(1)[:, None, :, None], 0)  # an unseen row may hold NaN, which weight 0 does not silence
    scores = torch.matmul(q.transpose(1, 2).to(k.dtype), k.transpose(2, 3)) * scale
    scores = scores.masked_fill(~seen.unsqueeze(1), float("-inf"))
    weights = torch.softmax(scores.to(wide(k.dtype)), dim=-1).to(v.dtype)
    return torch.matmul(weights, v).transpose(1, 2).to(q.dtype).contiguous()


def fake(q: Tensor) -> Tensor:
    batch, tokens, heads, head_dim = q.shape
    return rows_to_project(q, batch * tokens, heads * head_dim).view(q.shape)


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu", "gpu"))
