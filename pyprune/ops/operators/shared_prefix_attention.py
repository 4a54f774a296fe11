"""Causal attention of sequences that lie side by side, each behind a prefix that others may have too.

q [L, N, D], keys and values [G, L, D]: the tokens of S sequences, one sequence after the other. sequences [S, 3] int64
has a row for each: its own tokens, where the tokens of its prefix begin, and how many these are (0: none). A prefix is
any stretch of the L tokens. A query sees the whole prefix and its own sequence up to itself, of these the last `window`
where window > 0. No key is copied, and nothing is padded. Query head n uses KV head n // (N / G). Gives [L, N, D].
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import expect
from pyprune.ops.formulas import wide
from pyprune.ops.specification import Operator

SCHEMA = "(Tensor q, Tensor keys, Tensor values, Tensor sequences, float scale, int window=0) -> Tensor"


def reference(q: Tensor, keys: Tensor, values: Tensor, sequences: Tensor, scale: float, window: int = 0) -> Tensor:
    count, heads, _ = q.shape
    expect(
        keys.dim() == 3 and keys.shape == values.shape and keys.shape[1:] == (count, q.shape[2]),
        "keys, values: [kv_heads, tokens, head_dim] with q's tokens and head_dim are expected",
    )
    expect(
        keys.shape[0] > 0 and heads % keys.shape[0] == 0, f"keys: a divisor of {heads} heads is expected as kv_heads"
    )
    expect(
        sequences.dtype == torch.int64 and sequences.dim() == 2 and sequences.shape[1] == 3,
        "sequences: an int64 tensor [sequences, 3] is expected",
    )
    expect(window >= 0, f"window: {window} given; 0 (none) or a positive number is expected")
    group, result, begin = heads // keys.shape[0], torch.empty_like(q), 0
    for own, prefix, seen in sequences.tolist():
        expect(
            min(own, prefix, seen) >= 0 and prefix + seen <= count and begin + own <= count,
            f"sequences: {[own, prefix, seen]} is outside {count} tokens",
        )
        rows = slice(begin, begin + own)
        k, v = (
            torch.cat([x[:, prefix : prefix + seen], x[:, rows]], 1).repeat_interleave(group, 0) for x in (keys, values)
        )
        place, key = torch.arange(seen, seen + own, device=q.device)[:, None], torch.arange(seen + own, device=q.device)
        visible = key <= place
        if window:
            visible &= key > place - window
        scores = torch.matmul(q[rows].transpose(0, 1).to(k.dtype), k.transpose(1, 2)) * scale
        weights = torch.softmax(scores.masked_fill(~visible, float("-inf")).to(wide(k.dtype)), -1).to(v.dtype)
        result[rows] = torch.matmul(weights, v).transpose(0, 1).to(q.dtype)
        begin += own
    expect(begin == count, f"sequences: {begin} tokens in all; the {count} of q are expected")
    return result


def fake(q: Tensor) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


OPERATOR = Operator(SCHEMA, fake, reference, kernels=("cpu",))
