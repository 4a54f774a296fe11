"""Operands of the projections for attention and of attention, never zeros; NaN where nothing may be read."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.ops.inputs import norm, random, weight

CASES = [  # batch, tokens, heads, kv_heads, head_dim, hidden, cache rows
    (1, 1, 9, 3, 64, 96, 700),
    (3, 5, 4, 2, 10, 33, 40),
    (2, 40, 3, 3, 22, 50, 300),
    (2, 3, 8, 1, 128, 40, 530),
    (64, 1, 4, 2, 16, 24, 300),
]


def qkv_arguments(case: tuple[int, ...], dtype: torch.dtype, extras: bool) -> list:
    batch, tokens, heads, kv_heads, head_dim, hidden, length = case
    bias = [random(n * head_dim, dtype=dtype) if extras else None for n in (heads, kv_heads, kv_heads)]
    norms = [norm(head_dim, dtype) if extras else None for _ in range(2)]
    angle = torch.rand(length, head_dim // 2) * 6
    positions = torch.randint(0, length - tokens + 1, (batch, 1)) + torch.arange(tokens)
    weights = [weight(n * head_dim, hidden, dtype) for n in (heads, kv_heads, kv_heads)]
    x = random(batch, tokens, hidden)
    return [x, norm(hidden, dtype), 1e-5, *weights, *bias, *norms, angle.cos(), angle.sin(), positions]


def poisoned(case: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    batch, _, _, kv_heads, head_dim, _, length = case
    return torch.full((batch, kv_heads, length, head_dim), float("nan"), dtype=dtype)


def up_to_its_position(case: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and positions; NaN in every row that no query of the sequence may see."""
    batch, tokens, heads, _, head_dim, _, length = case
    positions = torch.randint(0, length - tokens + 1, (batch, 1)) + torch.arange(tokens)
    keys, values = poisoned(case, dtype), poisoned(case, dtype)
    for b in range(batch):
        seen = int(positions[b, -1]) + 1
        for cache in (keys, values):
            cache[b, :, :seen] = torch.randn_like(cache[b, :, :seen])
    return random(batch, tokens, heads, head_dim) * 2, keys, values, positions


def within_windows(
    positions: Tensor, first: Tensor, window: int, length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of 4 sequences; NaN in every row that no query of the sequence may see."""
    heads, kv_heads, head_dim = 6, 2, 18
    keys, values = (torch.full((4, kv_heads, length, head_dim), float("nan"), dtype=dtype) for _ in range(2))
    for b in range(4):
        for own in positions[b].tolist():
            start = min(own, max(int(first[b]), own - window + 1 if window else 0))
            for cache in (keys, values):
                cache[b, :, start : own + 1] = torch.randn_like(cache[b, :, start : own + 1])
    return random(4, positions.shape[1], heads, head_dim) * 2, keys, values


WRONG_QKV: list[tuple[int, Tensor, str]] = [
    (0, random(3, 33), "x: "),
    (1, norm(32, torch.float32), "norm"),
    (3, weight(41, 33, torch.float32), "q_weight"),
    (4, weight(10, 33, torch.float32), "k_weight"),
    (4, weight(20, 33, torch.bfloat16), "k_weight"),
    (6, random(39), "q_bias"),
    (11, random(40, 4), "cos, sin"),
    (13, torch.zeros(3, 5), "positions"),
    (15, random(3, 2, 39, 10), "v_cache"),
]
"""Places among the arguments for 3 sequences of 5 tokens (4 and 2 heads of 10, hidden 33, 40 rows of cache), what is
wrong there, and what the error says."""
