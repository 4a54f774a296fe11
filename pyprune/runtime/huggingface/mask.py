"""transformers' attention masks, read back as what `decode_attention` can express."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Causal(NamedTuple):
    """Query (b, t) sees the rows `first[b]` .. its own; `first` is int64 `[B]`, None for 0."""

    first: Tensor | None = None


def causal(mask: Tensor | None, rows: Tensor, start: int, length: int, is_causal: bool) -> Causal | None:
    """What `mask` lets queries see of `length` key rows, when it is causal attention with or without left padding.

    mask: bool (True: seen) or additive (0 or the dtype's minimum) `[B or 1, 1, T, length]`. `rows [B, T]`: each
    query's own row, from `start`. `is_causal`: whether the model's attention is causal where it gets no mask (sdpa;
    eager sees everything). None for any other mask; every query must see its own row.
    """
    batch, tokens = rows.shape
    if mask is None:
        sees_all = tokens == 1 and start + 1 == length
        return Causal() if sees_all or (is_causal and start == 0) else None
    if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[0] not in (1, batch):
        return None
    if mask.shape[1:] != (1, tokens, length):
        return None
    if mask.dtype == torch.bool:
        seen = mask[:, 0]
    else:
        seen = mask[:, 0] == 0
        if not bool((seen | (mask[:, 0] <= torch.finfo(mask.dtype).min)).all()):
            return None
    first = seen[:, 0].to(torch.uint8).argmax(-1)
    row = torch.arange(length, device=mask.device)
    expected = (row >= first[:, None, None]) & (row <= rows.unsqueeze(-1))
    if not torch.equal(seen.expand(expected.shape), expected):
        return None
    return Causal(first.expand(batch).contiguous() if bool(first.any()) else None)
