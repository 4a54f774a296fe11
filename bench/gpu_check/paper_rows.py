"""The rows of the paper's Table 1 as models: every block's heads and FFN width, and the model cut from the original.

Weights are random and the narrow models are slices of the original, so quality means nothing and is not measured.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

import pyprune
from pyprune.models.decoder import FFN, MHA, Block, Decoder, Linear
from pyprune.models.sizes import kv_bytes_per_position
from pyprune.pruning import Pruning
from pyprune.strides import gpu_rows, gpu_stride
from pyprune.study.paper import facts

DRY_SPEC = "shape:hidden=64,blocks=8,heads=8,kv_heads=8,head_dim=8,ffn=172,vocab=257"
DTYPE = torch.bfloat16
PACKED, PADDED, PAD_64 = "packed", "padded", "64"
"""How a narrow row is laid out: weights packed, weights as they are placed on a GPU (`strides.gpu_rows`), and
the FFN width itself rounded up to a multiple of 64 by zero neurons, as a checkpoint can have it."""

WHOLE_FIRST, WHOLE_LAST = 4, 2
"""Blocks that LLM-Pruner keeps whole (section 4); with them its parameter counts are the table's."""

SEED = 1


@dataclass(frozen=True)
class Sizes:
    """One row of Table 1: heads and FFN width of each block that it keeps."""

    method: str
    ratio: str | None
    heads: tuple[int, ...]
    widths: tuple[int, ...]
    layout: str = PACKED

    @property
    def name(self) -> str:
        parts = [self.method, self.ratio or ""] if self.ratio else [self.method]
        return " ".join([*parts, self.layout]) if self.layout != PACKED else " ".join(parts)


def sizes(model: str, method: str, ratio: str | None, original: Decoder) -> Sizes:
    """The row as the paper has it; on another model than that (a dry run's tiny one) all sizes in proportion.

    FLAP's heads and widths are ragged: drawn from the table's mean and deviation with a fixed seed, their sums the
    means times the blocks. LLM-Pruner's first four and last two blocks are whole.
    """
    shapes = {(shape.method, shape.ratio): shape for shape in facts.shapes() if shape.model == model}
    shape, original_shape = shapes[method, ratio], shapes[facts.ORIGINAL, None]
    full = original.blocks[0]
    assert full.mha is not None
    assert full.ffn is not None
    blocks = max(1, round(shape.blocks * len(original.blocks) / original_shape.blocks))
    heads = _drawn(shape.heads, shape.heads_deviation, original_shape.heads, full.mha.heads, blocks, SEED)
    widths = _drawn(shape.width, shape.width_deviation, original_shape.width, full.ffn.width, blocks, SEED + 1)
    if method == "llm-pruner" and blocks > WHOLE_FIRST + WHOLE_LAST:
        for place in (*range(WHOLE_FIRST), *range(blocks - WHOLE_LAST, blocks)):
            heads[place], widths[place] = full.mha.heads, full.ffn.width
    return Sizes(method, ratio, tuple(heads), tuple(widths))


def _drawn(mean: float, deviation: float, table_full: float, full: int, count: int, seed: int) -> list[int]:
    """`count` whole numbers from 1 to `full` whose mean and deviation are the table's times full / whole."""
    mean, deviation = mean * full / table_full, deviation * full / table_full
    if not deviation:
        return [max(1, int(mean))] * count
    return ragged(mean, deviation, full, count, seed)


def ragged(mean: float, deviation: float, limit: int, count: int, seed: int) -> list[int]:
    """`count` whole numbers from 1 to `most`, normally distributed before they are cut off at the ends, with the sum
    round(mean * count) and a deviation as near to `deviation` as the ends allow."""
    draw = random.Random(seed)
    normal = [draw.gauss(0, 1) for _ in range(count)]
    centre, scale = mean, deviation
    for _ in range(200):  # what is cut off moves mean and deviation: move the distribution until they are right
        values = [min(max(centre + scale * deviate, 1.0), float(limit)) for deviate in normal]
        centre += mean - statistics.fmean(values)
        scale *= min(2.0, deviation / max(statistics.pstdev(values), 1e-9))
        scale = min(scale, 100 * deviation)
    numbers = [min(max(round(value), 1), limit) for value in values]
    left = round(mean * count) - sum(numbers)
    step = 1 if left > 0 else -1
    while left:
        movable = [place for place, value in enumerate(numbers) if 1 <= value + step <= limit]
        for place in movable[: abs(left)]:
            numbers[place] += step
            left -= step
        if not movable:
            break
    return numbers


def layouts(row: Sizes) -> list[Sizes]:
    """A width row packed and padded; the row alone where no width leaves a gap (depth, multiples of 16 bytes)."""
    odd = row.method != "depth" and any(gpu_stride(width, DTYPE.itemsize) != width for width in row.widths)
    return [row, replace(row, layout=PADDED)] if odd else [row]


def rounded(row: Sizes, multiple: int = 64) -> Sizes:
    """The row with every width rounded up to the multiple."""
    return replace(row, widths=tuple(-(-width // multiple) * multiple for width in row.widths), layout=PAD_64)


def model_of(row: Sizes, original: Decoder) -> Decoder:
    """The row's model: rows are shared with the original, what is narrower (o and down) is copied into its layout."""
    if row.method == facts.ORIGINAL:
        return original
    if row.method == "depth":
        return pyprune.apply(original, Pruning(blocks=list(range(len(row.heads), len(original.blocks)))))
    blocks = [
        replace(block, mha=_narrow_mha(block, heads, row.layout), ffn=_narrow_ffn(block, width, row.layout))
        for block, heads, width in zip(original.blocks, row.heads, row.widths, strict=True)
    ]
    return replace(original, blocks=tuple(blocks))


def _narrow_mha(block: Block, heads: int, layout: str) -> MHA:
    mha = block.mha
    assert mha is not None
    size = heads * mha.head_dim
    q, k, v = (Linear(part.weight[:size]) for part in (mha.q, mha.k, mha.v))
    return replace(mha, q=q, k=k, v=v, o=_columns(mha.o, size, layout), heads=heads, kv_heads=heads)


def _narrow_ffn(block: Block, width: int, layout: str) -> FFN:
    ffn = block.ffn
    assert ffn is not None
    gate, up = (Linear(part.weight[:width]) for part in (ffn.gate, ffn.up))
    return replace(ffn, gate=gate, up=up, down=_columns(ffn.down, width, layout))


def _columns(linear: Linear, count: int, layout: str) -> Linear:
    """The first columns; the linear itself where that is all of them."""
    if count == linear.weight.shape[1]:
        return linear
    weight = linear.weight[:, :count].contiguous()
    return Linear(weight if layout == PACKED else gpu_rows(weight))


def own_bytes(row: Sizes, original: Decoder, cached: int) -> int:
    """Bytes that the row does not share with the original: o and down of a narrow model, and keys and values of
    `cached` positions."""
    mha = original.blocks[0].mha
    assert mha is not None
    heads = sum(row.heads) * mha.head_dim
    values = 2 * cached * heads
    if row.method not in (facts.ORIGINAL, "depth"):
        values += (heads + sum(width + 32 for width in row.widths)) * original.hidden_size
    return values * original.dtype.itemsize


def described(row: Sizes, decoder: Decoder) -> dict[str, object]:
    """The row's sizes as JSON data."""
    block = decoder.blocks[0]
    assert block.mha is not None
    deviation = statistics.pstdev(row.widths)
    return {
        "name": row.name, "method": row.method, "ratio": row.ratio, "layout": row.layout,
        "parameters": decoder.parameters(), "blocks": len(decoder.blocks), "heads": statistics.fmean(row.heads),
        "ffn_width": statistics.fmean(row.widths), "ffn_width_deviation": deviation,
        "heads_deviation": statistics.pstdev(row.heads),
        # Of the widths as they are in memory: what a load of 16 bytes, or a tensor core's tile, can rely on.
        "width_divisor": divisor(row.widths),
        "down_strides": sorted({b.ffn.down.weight.stride(0) for b in decoder.blocks if b.ffn is not None})[:8],
        "bytes_per_token": decoder.bytes_per_token(),
        "kv_bytes_per_position": kv_bytes_per_position(decoder),
    }  # fmt: skip


def divisor(widths: Sequence[int]) -> int:
    """The greatest power of two, at most 128, that divides all of them."""
    return next(power for power in (128, 64, 32, 16, 8, 4, 2, 1) if not any(width % power for width in widths))


def name_of_device(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
