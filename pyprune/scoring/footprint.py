"""How much memory a scoring pass takes beyond the model, and how it is split so that it stays within a limit.

Samples are independent and candidates are too, so either can be run in parts: the sums are the same, only the weights
are read once for each part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyprune.errors import InputError
from pyprune.models.decoder import Decoder
from pyprune.ops import native
from pyprune.runtime.sequence import activation_dtype
from pyprune.scoring.removals import Removal, present_places
from pyprune.scoring.schedule import schedule

ROWS = {"cpu": 1280, "cuda": 16384}
"""Rows that go through a block together: enough for GEMM to run at full speed, few enough for caches and memory."""

SKINNY_ROWS = native.constant("SKINNY_ROWS")
"""Up to this many rows go through a block in another way; a pass runs more, or some twice."""

FIXED = 24 << 20
"""What does not grow with anything: a tile of logits, the same of widened head weights, GEMM's own buffers."""


@dataclass(frozen=True)
class Split:
    """How many samples and how many different candidates run together, how many rows go through a block together, and
    the bytes that this takes beyond the model."""

    samples: int
    candidates: int
    rows: int
    bytes: int


def chunk_size(left: int, most: int) -> int:
    """How many of the `left` sequences go through a block next: `most`, or else the largest 2^k or 3 * 2^k.

    torch's GEMM on CPUs compiles code for each number of rows that it meets, and keeps it. With few numbers it stays
    little: with each remainder as one chunk it took 56 MB for sequences of 16 tokens.
    """
    if left >= most:
        return most
    power = 1 << (left.bit_length() - 1)
    return power + power // 2 if left >= power + power // 2 else power


def plan_bytes(decoder: Decoder, slots: int, samples: int, tokens: int, rows: int, padded: bool = False) -> int:
    """Bytes that `losses` takes beyond the model: the states of all slots, and one chunk of rows at its widest."""
    size = activation_dtype(decoder).itemsize
    states = slots * samples * tokens * decoder.hidden_size * size
    chunk = max(min(max(rows // tokens, 1), slots * samples), SKINNY_ROWS // tokens + 1) * tokens
    return states + chunk * _row_bytes(decoder, tokens, padded) + FIXED


def split(
    decoder: Decoder, shape: tuple[int, int], removals: Sequence[Removal], limit: int | None, padded: bool = False
) -> Split:
    """The fewest parts that fit `limit` bytes (None: no limit) for `[S, T]` samples and these candidates.

    Samples are split before candidates, which share prefixes. InputError with the least that is needed when even one
    candidate on one sample does not fit.
    """
    samples, tokens = shape
    blocks = len(decoder.blocks)
    held = streamed_bytes(decoder)
    slots = schedule(blocks, present_places(decoder), removals).slots
    rows = ROWS.get(decoder.device.type, ROWS["cuda"])

    def needed(slots: int, samples: int, rows: int) -> int:
        return plan_bytes(decoder, slots, samples, tokens, rows, padded) + held

    if limit is None:
        return Split(samples, len(removals), rows, needed(slots, samples, rows))
    for together in (rows, tokens):  # full chunks while they fit, then one sequence at a time
        for part in _even_parts(samples):
            if needed(slots, part, together) <= limit:
                return Split(part, len(removals), together, needed(slots, part, together))
    for part in _even_parts(len(removals)):
        if needed(min(part, slots), 1, tokens) <= limit:
            return Split(1, part, tokens, needed(min(part, slots), 1, tokens))
    raise InputError(
        f"memory: {limit / 1e6:.1f} MB given; one sample of {tokens} tokens of {decoder.name} needs"
        f" {needed(1, 1, tokens) / 1e6 + 0.1:.1f} MB beyond the model"
    )


def streamed_bytes(decoder: Decoder) -> int:
    """Bytes of the weights that stand in memory beside the model's own where blocks are streamed: the two largest."""
    if not decoder.streamed:
        return 0
    sizes = (sum(t.numel() * t.element_size() for _, t in block.tensors()) for block in decoder.sizes().blocks)
    return sum(sorted(sizes)[-2:])


def _even_parts(count: int) -> list[int]:
    """Sizes of the largest part when `count` is cut into 1, 2, 3 .. parts as evenly as can be."""
    return list(dict.fromkeys(-(-count // parts) for parts in range(1, count + 1)))


def _row_bytes(decoder: Decoder, tokens: int, padded: bool) -> int:
    """Bytes of the widest moment of a row: gate, up and their product, or all that attention holds, in float32."""
    hidden, widest = decoder.hidden_size, 0
    for block in decoder.sizes().blocks:
        if block.ffn is not None:
            # With bf16 units one of the two products also stands in bfloat16 while it is widened.
            widest = max(widest, 4 * (hidden + 3 * block.ffn.width) + 2 * (hidden + block.ffn.width))
        if block.mha is not None:
            heads, kv = (n * block.mha.head_dim for n in (block.mha.heads, block.mha.kv_heads))
            widest = max(widest, 4 * (hidden + 5 * heads + 2 * kv))
    seen = 5 * tokens if padded or any(b.mha is not None and b.mha.window for b in decoder.sizes().blocks) else 0
    return widest + 4 * 2 * hidden + seen
