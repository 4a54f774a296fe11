"""Block sizes for each architecture: one small fixed table. What `pyprune tune` has measured takes precedence.

The sizes follow from counting bytes in flight, registers and shared memory, not from timing.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

SKINNY_ROWS = 64  # up to this many rows: the skinny kernels, which stream the weights once; beyond it: torch's own GEMM
GEMV_ROWS = 2  # up to this many rows: a GEMV, summed in registers; beyond it: tensor cores, with padded rows


@dataclass(frozen=True)
class Shape:
    """A class of shapes that share a configuration: of a product, M (padded), N and K (rounded up to powers of 2).

    Of attention: query heads that share a KV head, cache rows, head size.
    """

    rows: int
    columns: int
    inner: int


@dataclass(frozen=True)
class Tile:
    """The block of a product x [M, K] W [N, K]^T that one program takes, and how Triton compiles it."""

    block_m: int  # rows of activations
    block_n: int  # rows of weights, which are columns of the product
    block_k: int  # values of K a step
    warps: int
    stages: int
    programs_per_sm: int = 2  # where K is split: into as many splits as give each SM this many programs
    registers: int = 0  # limit a thread; 0 leaves it to the compiler


@dataclass(frozen=True)
class AttentionTile:
    """What one program of attention takes: query heads that share a KV head, against rows of the KV cache."""

    block_q: int  # query heads (x tokens)
    block_kv: int  # KV rows a step
    kv_split: int  # KV rows a program, where the cache is split
    warps: int
    stages: int


Config = Tile | AttentionTile
C = TypeVar("C", Tile, AttentionTile)


@dataclass(frozen=True)
class Architecture:
    """A GPU's limits and its tiles. `single` and `pair` (two weights at once) are keyed by the padded row count."""

    name: str
    sm_count: int  # streaming multiprocessors (SMs); the count of the device replaces it where there is a device
    shared_bytes: int  # limit of shared memory a program
    single: dict[int, Tile]
    pair: dict[int, Tile]
    gemm: Tile  # more than SKINNY_ROWS rows
    kv_split: int  # KV rows a program of split attention
    block_kv: int  # KV rows a step, at 256 bytes a row
    attention_stages: int
    warps_of_64: int  # warps for 64 queries at once; with mma.sync their sums would fill the registers of 4 warps
    dependent_launch: bool = False  # programmatic dependent launch; compute capability 9.0 and later


def _gemv(block_n: int) -> dict[int, Tile]:
    # 8 weight rows x 1024 values are 16 KB and 8 loads of 16 bytes in flight for each of 128 threads. With 96 registers
    # 5 programs fit an SM. Without the limit ptxas aims at 8 programs with 64 registers, and spills two words.
    return {rows: Tile(rows, block_n, 1024, 4, 1, registers=96) for rows in (1, 2)}


# 64 weight rows fill the wgmma of a warpgroup on sm_90, and halve the reads of activations.
_WIDE = (
    {**_gemv(8), 16: Tile(16, 64, 128, 4, 4), 32: Tile(32, 64, 128, 4, 4), 64: Tile(64, 64, 64, 4, 4)},  # one weight
    {**_gemv(4), 16: Tile(16, 64, 64, 4, 4), 32: Tile(32, 64, 64, 4, 4), 64: Tile(64, 32, 64, 4, 4)},  # a pair
)
# Two programs fit the 100 KB of shared memory of an SM on sm_86.
_NARROW = (
    {**_gemv(8), 16: Tile(16, 32, 128, 4, 3), 32: Tile(32, 32, 128, 4, 3), 64: Tile(64, 64, 64, 4, 3)},  # one weight
    {**_gemv(4), 16: Tile(16, 32, 128, 4, 3), 32: Tile(32, 32, 64, 4, 3), 64: Tile(64, 32, 32, 4, 4)},  # a pair
)
# SM counts are those of each generation's largest card: A100, RTX 3090, RTX 4090, H100, B200, RTX 5090. The limit of
# shared memory a program is 1 KB less than an SM has. Every SM has 65,536 registers.
SM_80 = Architecture("sm_80", 108, 163 << 10, *_WIDE, gemm=Tile(128, 128, 64, 8, 3), kv_split=128, block_kv=64,
                     attention_stages=2, warps_of_64=8)  # fmt: skip
SM_86 = Architecture("sm_86", 82, 99 << 10, *_NARROW, gemm=Tile(128, 128, 32, 8, 3), kv_split=128, block_kv=64,
                     attention_stages=2, warps_of_64=8)  # fmt: skip
SM_89 = replace(SM_86, name="sm_89", sm_count=128)
SM_90 = Architecture("sm_90", 132, 227 << 10, *_WIDE, gemm=Tile(128, 128, 64, 8, 4), kv_split=128, block_kv=64,
                     attention_stages=2, warps_of_64=4, dependent_launch=True)  # fmt: skip
SM_100 = replace(SM_90, name="sm_100", sm_count=148)
# Consumer Blackwell has Ampere's shared memory and matrix instructions (mma.sync), and Hopper's dependent launch.
SM_120 = replace(SM_86, name="sm_120", sm_count=170, dependent_launch=True)

_small = {rows: Tile(rows, 8 if rows < 16 else 16, 32, 1, 1) for rows in (1, 2, 16, 32, 64)}
# Tiny tiles: in the interpreter small shapes then have many tiles, with loops, tails and splits.
INTERPRETER = Architecture("interpreter", 6, 1 << 30, _small, _small, gemm=Tile(64, 32, 32, 1, 1), kv_split=32,
                           block_kv=16, attention_stages=1, warps_of_64=4)  # fmt: skip

ARCHITECTURES = {80: SM_80, 86: SM_86, 89: SM_89, 90: SM_90, 100: SM_100, 120: SM_120}
REGISTERS = 65_536  # of an SM, for the threads of all its programs


def nearest(capability: int) -> Architecture:
    """The table for a compute capability (86 is 8.6), else the nearest older one; before 8.0, which has less shared
    memory, the table of 8.6."""
    capabilities = [number for number in ARCHITECTURES if number <= capability]
    return ARCHITECTURES[max(capabilities, default=86)]


@functools.cache
def _of_device(index: int) -> Architecture:
    properties = torch.cuda.get_device_properties(index)
    return replace(nearest(10 * properties.major + properties.minor), sm_count=properties.multi_processor_count)


def architecture(device: torch.device) -> Architecture:
    """The table for a CUDA device (its architecture or the nearest older one); the interpreter's for a CPU."""
    if device.type != "cuda":
        return INTERPRETER
    return _of_device(torch.cuda.current_device() if device.index is None else device.index)


def skinny_tile(arch: Architecture, rows: int, dtype: torch.dtype, pair: bool) -> Tile:
    """The tile for `rows` (1 to 64) activation rows against weights of `dtype`."""
    padded = rows if rows <= GEMV_ROWS else next(size for size in (16, 32, 64) if rows <= size)
    return widened((arch.pair if pair else arch.single)[padded], dtype)


def gemm_tile(arch: Architecture, dtype: torch.dtype, pair: bool) -> Tile:
    """The tile of a full GEMM against weights of `dtype`; two weights at once share the sums' registers."""
    tile = widened(arch.gemm, dtype)
    return replace(tile, block_n=max(tile.block_n // 2, 16)) if pair else tile


def widened(tile: Tile, dtype: torch.dtype) -> Tile:
    """The tile for float32 weights, which take twice the bytes and, without tensor cores, many more registers."""
    if dtype.itemsize == 2:
        return tile
    if tile.block_m <= GEMV_ROWS:
        return replace(tile, block_k=max(tile.block_k // 2, 32))
    block_m, block_n = min(tile.block_m, 64), min(tile.block_n, 16 if tile.block_m == 64 else 32)
    # Without a limit of registers ptxas spills two or four words for a higher occupancy.
    return replace(tile, block_m=block_m, block_n=block_n, block_k=32, warps=min(tile.warps, 4), registers=255)


def splits_for(arch: Architecture, tiles: int, inner: int, tile: Tile) -> tuple[int, int]:
    """(number of K splits, K steps a split). There is more than one split only where tiles are fewer than SMs."""
    steps = -(-inner // tile.block_k)
    if tiles >= arch.sm_count:
        return 1, max(steps, 1)
    splits = min(-(-tile.programs_per_sm * arch.sm_count // max(tiles, 1)), max(steps // 2, 1))
    steps_per_split = max(-(-steps // splits), 1)
    return max(-(-steps // steps_per_split), 1), steps_per_split


def attention_tile(arch: Architecture, queries: int, head_dim: int, dtype: torch.dtype, split: bool) -> AttentionTile:
    """The tile for `queries` query heads that share a KV head (tokens x group), caches of `dtype`."""
    row_bytes = max(_power_of_2(head_dim) * dtype.itemsize, 256)
    block_kv = max(16, arch.block_kv * 256 // row_bytes)
    if queries <= GEMV_ROWS:  # keys and values are in registers, as float32
        block_kv = max(16, block_kv // 2)
    elif dtype == torch.float32:  # no tensor cores: all sums are in registers
        block_kv = 16 if split or row_bytes > 512 else min(arch.block_kv, 32)
    limit = 64 if row_bytes <= 256 and dtype.itemsize == 2 else 16
    block_q = queries if queries <= GEMV_ROWS else min(max(_power_of_2(queries), 16), limit)
    warps = arch.warps_of_64 if block_q == 64 else 4
    return AttentionTile(block_q, block_kv, arch.kv_split, warps, arch.attention_stages)


LENGTHS = (512, 2048, 8192, 32768)  # classes of cache lengths


def shape_of(tile: Tile, columns: int, inner: int) -> Shape:
    """The class of a product with weights [columns, inner] in tiles of `block_m` rows."""
    return Shape(tile.block_m, _power_of_2(columns), _power_of_2(inner))


def attention_shape(tile: AttentionTile, length: int, head_dim: int) -> Shape:
    """The class of attention against caches of `length` rows."""
    return Shape(tile.block_q, next((size for size in LENGTHS if length <= size), LENGTHS[-1]), head_dim)


def _power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()
