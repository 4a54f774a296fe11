"""Block sizes for each architecture: one small fixed table, nothing is tuned at run time.

Not yet run on hardware: the sizes follow from counting bytes in flight, registers and shared memory, not from timing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

FEW_ROWS = 64  # up to this many rows the weights are streamed once; beyond it torch's own GEMM does the products
GEMV_ROWS = 2  # up to this many rows a product is a sum in registers; beyond it tensor cores with padded rows


@dataclass(frozen=True)
class Tile:
    """rows of activations x columns (weight rows) x inner (stretch of K a step), and how Triton compiles it."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Architecture:
    """A GPU's limits and its tiles. `single` and `pair` (two weights at once) are keyed by the padded row count."""

    name: str
    processors: int  # streaming multiprocessors; the device's own count replaces it where there is a device
    shared_bytes: int  # shared memory that one program may have
    single: dict[int, Tile]
    pair: dict[int, Tile]
    loss: Tile  # many rows of linear + cross-entropy: a full GEMM tile
    stretch: int  # KV rows that one program of split attention takes
    keys: int  # KV rows that it takes at a time
    attention_stages: int


def _gemv(columns: int) -> dict[int, Tile]:
    # 8 weight rows x 1024 values are 16 KB and 8 loads of 16 bytes in flight for each of 128 threads.
    return {rows: Tile(rows, columns, 1024, 4, 1) for rows in (1, 2)}


# 64 weight rows fill a warpgroup's matrix instruction on sm_90, and halve the activations read for each weight.
_WIDE = {
    "single": {**_gemv(8), 16: Tile(16, 64, 128, 4, 4), 32: Tile(32, 64, 128, 4, 4), 64: Tile(64, 64, 64, 4, 4)},
    "pair": {**_gemv(4), 16: Tile(16, 64, 64, 4, 4), 32: Tile(32, 64, 64, 4, 4), 64: Tile(64, 32, 64, 4, 4)},
}
# Two programs fit the 100 KB of a processor of sm_86.
_NARROW = {
    "single": {**_gemv(8), 16: Tile(16, 32, 128, 4, 3), 32: Tile(32, 32, 128, 4, 3), 64: Tile(64, 64, 64, 4, 3)},
    "pair": {**_gemv(4), 16: Tile(16, 32, 128, 4, 3), 32: Tile(32, 32, 64, 4, 3), 64: Tile(64, 32, 64, 4, 3)},
}
SM_80 = Architecture("sm_80", 108, 163 << 10, **_WIDE, loss=Tile(128, 128, 64, 8, 3), stretch=128, keys=64,
                     attention_stages=2)  # fmt: skip
SM_86 = Architecture("sm_86", 82, 99 << 10, **_NARROW, loss=Tile(128, 128, 32, 8, 3), stretch=128, keys=64,
                     attention_stages=2)  # fmt: skip
SM_90 = Architecture("sm_90", 132, 227 << 10, **_WIDE, loss=Tile(128, 128, 64, 8, 4), stretch=128, keys=64,
                     attention_stages=2)  # fmt: skip

_small = {rows: Tile(rows, 8 if rows < 16 else 16, 32, 1, 1) for rows in (1, 2, 16, 32, 64)}
# Tiny tiles, so that in the interpreter small shapes have many of them, with loops, tails and splits.
INTERPRETER = Architecture("interpreter", 6, 1 << 30, _small, _small, loss=Tile(64, 32, 32, 1, 1), stretch=32, keys=16,
                           attention_stages=1)  # fmt: skip

ARCHITECTURES = {80: SM_80, 86: SM_86, 90: SM_90}


@functools.cache
def _of_device(index: int) -> Architecture:
    properties = torch.cuda.get_device_properties(index)
    capability = 10 * properties.major + properties.minor
    known = [number for number in ARCHITECTURES if number <= capability]
    # Blackwell for PCs (12.x) has Ampere's 99 KB of shared memory.
    nearest = 86 if capability > 110 or not known else max(known)
    return replace(ARCHITECTURES[nearest], processors=properties.multi_processor_count)


def architecture(device: torch.device) -> Architecture:
    """The table for a CUDA device: its own architecture or the nearest older one; the interpreter's for a CPU."""
    if device.type != "cuda":
        return INTERPRETER
    return _of_device(torch.cuda.current_device() if device.index is None else device.index)


def few_rows_tile(arch: Architecture, rows: int, dtype: torch.dtype, pair: bool) -> Tile:
    """The tile for `rows` (1 to 64) activation rows against weights of `dtype`."""
    padded = rows if rows <= GEMV_ROWS else next(size for size in (16, 32, 64) if rows <= size)
    return widened((arch.pair if pair else arch.single)[padded], dtype)


def widened(tile: Tile, dtype: torch.dtype) -> Tile:
    """The tile for float32 weights, which take twice the bytes and, without matrix units, many more registers."""
    if dtype.itemsize == 2:
        return tile
    if tile.rows <= GEMV_ROWS:
        return replace(tile, inner=max(tile.inner // 2, 32))
    columns = min(tile.columns, 16 if tile.rows == 64 else 32)
    return replace(tile, rows=min(tile.rows, 64), columns=columns, inner=32, warps=min(tile.warps, 4))


def splits_for(arch: Architecture, tiles: int, inner: int, tile: Tile) -> tuple[int, int]:
    """(number of K splits, K steps in each): more than one split only where column tiles are fewer than processors."""
    steps = -(-inner // tile.inner)
    if tiles >= arch.processors:
        return 1, max(steps, 1)
    wanted = min(-(-2 * arch.processors // max(tiles, 1)), max(steps // 2, 1))
    each = max(-(-steps // wanted), 1)
    return max(-(-steps // each), 1), each
