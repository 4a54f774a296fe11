"""Block sizes for each architecture: one small fixed table; what `pyprune tune` has measured comes before it.

The sizes follow from counting bytes in flight, registers and shared memory, not from timing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

SKINNY_ROWS = 64  # up to this many rows the weights are streamed once; beyond it torch's own GEMM does the products
GEMV_ROWS = 2  # up to this many rows a product is a sum in registers; beyond it tensor cores with padded rows


@dataclass(frozen=True)
class Shape:
    """A class of shapes that share a configuration: padded rows, and columns and inner size rounded up.

    Of attention: query heads that share a KV head, cache rows, head size.
    """

    rows: int
    columns: int
    inner: int


@dataclass(frozen=True)
class Tile:
    """rows of activations x columns (weight rows) x inner (stretch of K a step), and how Triton compiles it."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    programs: int = 2  # for each processor, where K is split to have that many
    registers: int = 0  # most a thread; 0 leaves it to the compiler


@dataclass(frozen=True)
class AttentionTile:
    """Query heads of one KV head against `keys` KV rows a step; where the cache is split, `stretch` rows a program."""

    queries: int
    keys: int
    stretch: int
    warps: int
    stages: int


Config = Tile | AttentionTile
C = TypeVar("C", Tile, AttentionTile)


@dataclass(frozen=True)
class Architecture:
    """A GPU's limits and its tiles. `single` and `pair` (two weights at once) are keyed by the padded row count."""

    name: str
    processors: int  # streaming multiprocessors; the device's own count replaces it where there is a device
    shared_bytes: int  # shared memory that one program may have
    single: dict[int, Tile]
    pair: dict[int, Tile]
    loss: Tile  # many rows: a full GEMM tile
    stretch: int  # KV rows that one program of split attention takes
    keys: int  # KV rows that it takes at a time, for 256 bytes a row
    attention_stages: int
    warps_of_64: int  # warps for 64 queries at once, whose sums fill the registers of 4 warps on mma.sync
    dependent_launch: bool = False  # kernels can be set up while the one before runs; True from 9.0 on


def _gemv(columns: int) -> dict[int, Tile]:
    # 8 weight rows x 1024 values are 16 KB and 8 loads of 16 bytes in flight for each of 128 threads. With 96 registers
    # 5 programs fit a processor; left alone, ptxas aims at 8 of them with 64, and spills two words for it.
    return {rows: Tile(rows, columns, 1024, 4, 1, registers=96) for rows in (1, 2)}


# 64 weight rows fill a warpgroup's matrix instruction on sm_90, and halve the activations read for each weight.
_WIDE = (
    {**_gemv(8), 16: Tile(16, 64, 128, 4, 4), 32: Tile(32, 64, 128, 4, 4), 64: Tile(64, 64, 64, 4, 4)},  # one weight
    {**_gemv(4), 16: Tile(16, 64, 64, 4, 4), 32: Tile(32, 64, 64, 4, 4), 64: Tile(64, 32, 64, 4, 4)},  # a pair
)
# Two programs fit the 100 KB of a processor of sm_86.
_NARROW = (
    {**_gemv(8), 16: Tile(16, 32, 128, 4, 3), 32: Tile(32, 32, 128, 4, 3), 64: Tile(64, 64, 64, 4, 3)},  # one weight
    {**_gemv(4), 16: Tile(16, 32, 128, 4, 3), 32: Tile(32, 32, 64, 4, 3), 64: Tile(64, 32, 32, 4, 4)},  # a pair
)
# The processors are those of each generation's largest card: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090. Shared
# memory: what a program may have of it, 1 KB less than a processor has. Registers: 65,536 a processor on all of them.
SM_80 = Architecture("sm_80", 108, 163 << 10, *_WIDE, loss=Tile(128, 128, 64, 8, 3), stretch=128, keys=64,
                     attention_stages=2, warps_of_64=8)  # fmt: skip
SM_86 = Architecture("sm_86", 82, 99 << 10, *_NARROW, loss=Tile(128, 128, 32, 8, 3), stretch=128, keys=64,
                     attention_stages=2, warps_of_64=8)  # fmt: skip
SM_89 = replace(SM_86, name="sm_89", processors=128)
SM_90 = Architecture("sm_90", 132, 227 << 10, *_WIDE, loss=Tile(128, 128, 64, 8, 4), stretch=128, keys=64,
                     attention_stages=2, warps_of_64=4, dependent_launch=True)  # fmt: skip
SM_100 = replace(SM_90, name="sm_100", processors=148)
# Blackwell for PCs has Ampere's shared memory and matrix instructions (mma.sync), and Hopper's dependent launch.
SM_120 = replace(SM_86, name="sm_120", processors=170, dependent_launch=True)

_small = {rows: Tile(rows, 8 if rows < 16 else 16, 32, 1, 1) for rows in (1, 2, 16, 32, 64)}
# Tiny tiles, so that in the interpreter small shapes have many of them, with loops, tails and splits.
INTERPRETER = Architecture("interpreter", 6, 1 << 30, _small, _small, loss=Tile(64, 32, 32, 1, 1), stretch=32, keys=16,
                           attention_stages=1, warps_of_64=4)  # fmt: skip

ARCHITECTURES = {80: SM_80, 86: SM_86, 89: SM_89, 90: SM_90, 100: SM_100, 120: SM_120}
REGISTERS = 65_536  # of a processor, for the threads of all its programs


def nearest(capability: int) -> Architecture:
    """The table for a compute capability (86 is 8.6): its own or the nearest older one; for those before 8.0, which
    have less shared memory, that of 8.6."""
    known = [number for number in ARCHITECTURES if number <= capability]
    return ARCHITECTURES[max(known, default=86)]


@functools.cache
def _of_device(index: int) -> Architecture:
    properties = torch.cuda.get_device_properties(index)
    return replace(nearest(10 * properties.major + properties.minor), processors=properties.multi_processor_count)


def architecture(device: torch.device) -> Architecture:
    """The table for a CUDA device: its own architecture or the nearest older one; the interpreter's for a CPU."""
    if device.type != "cuda":
        return INTERPRETER
    return _of_device(torch.cuda.current_device() if device.index is None else device.index)


def skinny_tile(arch: Architecture, rows: int, dtype: torch.dtype, pair: bool) -> Tile:
    """The tile for `rows` (1 to 64) activation rows against weights of `dtype`."""
    padded = rows if rows <= GEMV_ROWS else next(size for size in (16, 32, 64) if rows <= size)
    return widened((arch.pair if pair else arch.single)[padded], dtype)


def gemm_tile(arch: Architecture, dtype: torch.dtype, pair: bool) -> Tile:
    """The tile of a full GEMM against weights of `dtype`; two weights at once share the sums' registers."""
    tile = widened(arch.loss, dtype)
    return replace(tile, columns=max(tile.columns // 2, 16)) if pair else tile


def widened(tile: Tile, dtype: torch.dtype) -> Tile:
    """The tile for float32 weights, which take twice the bytes and, without matrix units, many more registers."""
    if dtype.itemsize == 2:
        return tile
    if tile.rows <= GEMV_ROWS:
        return replace(tile, inner=max(tile.inner // 2, 32))
    columns = min(tile.columns, 16 if tile.rows == 64 else 32)
    # Told how many registers it may take, ptxas does not spill two or four words for an occupancy of its own.
    return replace(tile, rows=min(tile.rows, 64), columns=columns, inner=32, warps=min(tile.warps, 4), registers=255)


def splits_for(arch: Architecture, tiles: int, inner: int, tile: Tile) -> tuple[int, int]:
    """(number of K splits, K steps in each): more than one split only where column tiles are fewer than processors."""
    steps = -(-inner // tile.inner)
    if tiles >= arch.processors:
        return 1, max(steps, 1)
    wanted = min(-(-tile.programs * arch.processors // max(tiles, 1)), max(steps // 2, 1))
    each = max(-(-steps // wanted), 1)
    return max(-(-steps // each), 1), each


def attention_tile(arch: Architecture, queries: int, head_dim: int, dtype: torch.dtype, split: bool) -> AttentionTile:
    """The tile for `queries` query heads that share a KV head (tokens x group), caches of `dtype`."""
    row_bytes = max(_power_of_2(head_dim) * dtype.itemsize, 256)
    keys = max(16, arch.keys * 256 // row_bytes)
    if dtype == torch.float32:  # no matrix units: what they would hold is in registers
        keys = max(16, keys // 2) if queries <= GEMV_ROWS else 16 if split or row_bytes > 512 else min(arch.keys, 32)
    elif queries <= GEMV_ROWS:  # keys and values are in registers, as float32
        keys = max(16, keys // 2)
    most = 64 if row_bytes <= 256 and dtype.itemsize == 2 else 16
    padded = queries if queries <= GEMV_ROWS else min(max(_power_of_2(queries), 16), most)
    warps = arch.warps_of_64 if padded == 64 else 4
    return AttentionTile(padded, keys, arch.stretch, warps, arch.attention_stages)


LENGTHS = (512, 2048, 8192, 32768)  # of a cache, in classes


def shape_of(tile: Tile, columns: int, inner: int) -> Shape:
    """The class of a product with weights [columns, inner] in tiles of so many rows."""
    return Shape(tile.rows, _power_of_2(columns), _power_of_2(inner))


def attention_shape(tile: AttentionTile, length: int, head_dim: int) -> Shape:
    """The class of attention against caches of `length` rows."""
    return Shape(tile.queries, next((size for size in LENGTHS if length <= size), LENGTHS[-1]), head_dim)


def _power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
