"""Dropout masks that follow from a seed alone, so that none has to be kept for the way back.

A value of a matrix is dropped where 16 random bits of its own, as a number, are below p * 65536; so p is taken to the
next 1/65536. On a CPU the bits are Philox4x32-10's (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
a function of seed, row and column: any part of a mask can be drawn alone, by any thread and with any instruction set.
The key is the seed. The counter (c, row low, row high, 0) with c = 8 b + l gives four words of 32 bits; their halves,
the lower ones first, belong to the columns 64 b + 8 i + l, i = 0 .. 7. On other devices torch's generator draws them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyprune.ops.checks import expect

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_WORD = 0xFFFFFFFF
STEPS = 1 << 16
"""Of the probability."""


def threshold(dropout: float) -> int:
    """The number below which 16 bits drop their value. RuntimeError unless dropout is in [0, 1)."""
    expect(0 <= dropout < 1, f"dropout: a probability from 0 to below 1 is expected, not {dropout}")
    return min(STEPS - 1, round(dropout * STEPS))


def kept(seed: int, rows: int, columns: int, dropout: float, device: torch.device | str = "cpu") -> Tensor:
    """The mask [rows, columns] of a seed, bool: True where a value stays."""
    limit, device = threshold(dropout), torch.device(device)
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(seed)
        half = STEPS // 2
        bits = torch.randint(-half, half, (rows, columns), dtype=torch.int16, device=device, generator=generator)
        return bits >= limit - half
    blocks = -(-columns // 64)
    row = torch.arange(rows)[:, None]
    words = philox(torch.arange(8 * blocks)[None], row & _WORD, row >> 32, torch.zeros((), dtype=torch.int64), seed)
    halves = [half.view(rows, blocks, 8) for word in words for half in (word & (STEPS - 1), word >> 16)]
    return torch.stack(halves, 2).view(rows, 64 * blocks)[:, :columns] >= limit


def kept_values(rows: Tensor, seed: int, dropout: float) -> Tensor:
    """The rows [M, K] with 0 where the mask of the seed drops a value; themselves without dropout."""
    count, columns = rows.shape
    return rows.where(kept(seed, count, columns, dropout, rows.device), 0) if dropout else rows


def philox(a: Tensor, b: Tensor, c: Tensor, d: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 of the counters (a, b, c, d), words of 32 bits in int64, which are broadcast; seed: the key."""
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(_ROUNDS):
        one, other = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = other >> 32 & _WORD ^ b ^ key[0], other & _WORD, one >> 32 & _WORD ^ d ^ key[1], one & _WORD
        key = [(part + step) & _WORD for part, step in zip(key, _KEY_STEPS, strict=True)]
    return a, b, c, d
