"""The configurations that `pyprune tune` times for an operator and a class of shapes; the fixed table's is the first.

Each is kept small enough for an architecture's shared memory and registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

from pyprune.triton_kernels import configs
from pyprune.triton_kernels.configs import Architecture, AttentionTile, Config, Shape, Tile

PAIRS = ("norm_qkv_rope", "norm_gate_up")  # two weights at once
SINGLES = ("linear_residual", "norm_head", "padded_linear")


def candidates(operator: str, dtype: torch.dtype, shape: Shape, arch: Architecture) -> list[Config]:
    """All configurations for weights (or caches) of `dtype`, without repetition. ValueError for what is never tuned."""
    if operator == "decode_attention":
        fixed = configs.attention_tile(arch, shape.rows, shape.inner, dtype, split=True)
        tiles = [fixed, *_attention(fixed, shape, dtype, arch)]
    elif operator == "linear_cross_entropy":
        fixed = configs.widened(arch.gemm, dtype)
        tiles = [fixed, *_gemm(fixed, dtype, arch)]
    elif operator in (*PAIRS, *SINGLES) and shape.rows <= configs.SKINNY_ROWS:
        pair = operator in PAIRS
        fixed = configs.skinny_tile(arch, shape.rows, dtype, pair)
        blocks = _gemv(fixed, dtype, pair) if fixed.block_m <= configs.GEMV_ROWS else _dot(fixed, dtype, pair, arch)
        tiles = [fixed, *(replace(tile, programs_per_sm=n) for tile in blocks for n in _programs_per_sm(tile, shape))]
    else:
        raise ValueError(f"operator: {operator} with {shape.rows} rows is not tuned")
    if shape.rows != (fixed.block_q if isinstance(fixed, AttentionTile) else fixed.block_m):
        raise ValueError(f"shape: {shape.rows} rows are not a class of {operator}")
    return list(dict.fromkeys(tiles))


def _programs_per_sm(tile: Tile, shape: Shape) -> tuple[int, ...]:
    """Choices of `programs_per_sm`: a single one where every SM has a tile, so that K is not split."""
    # The smallest number of tiles: a class begins at half its size, and a tile of qkv has two halves of a head.
    tiles = shape.columns // 2 // (2 * tile.block_n)
    return (tile.programs_per_sm,) if tiles >= 256 else (1, 2, 4)  # no GPU of the table has more than 256 SMs


def _gemv(fixed: Tile, dtype: torch.dtype, pair: bool) -> Iterator[Tile]:
    """4 to 8 loads of 16 bytes in flight a thread, as far as registers go."""
    for block_n, step_bytes, warps in product((2, 4, 8, 16), (1024, 2048) if pair else (1024, 2048, 4096), (4, 8)):
        loads = (1 + pair) * block_n * step_bytes // (16 * 32 * warps)
        if 4 <= loads <= (4 if fixed.block_m == 2 else 8):
            yield replace(fixed, block_n=block_n, block_k=step_bytes // dtype.itemsize, warps=warps)


def _dot(fixed: Tile, dtype: torch.dtype, pair: bool, arch: Architecture) -> Iterator[Tile]:
    wide = dtype.itemsize == 4  # no tensor cores: the fixed tile's sums already fill the registers
    widths = (16, fixed.block_n) if wide else (16, 32, 64)
    for block_n, block_k, stages in product(widths, (32,) if wide else (32, 64, 128), (2, 3, 4)):
        # Registers a thread: sums, and with a norm the activations and their squares as float32. Without a limit ptxas
        # spills some of them for a higher occupancy.
        sums, normalised = (1 + pair) * fixed.block_m * block_n, fixed.block_m * block_k
        if sums > 4096 or normalised > 4096 // (1 + pair):
            continue
        registers = 255 if wide or normalised >= 2048 else 168  # two or three programs an SM
        tile = replace(fixed, block_n=block_n, block_k=block_k, stages=stages, registers=registers)
        if _shared_bytes(tile, dtype, 1 + pair, activation_bytes=4) <= arch.shared_bytes:
            yield tile


def _gemm(fixed: Tile, dtype: torch.dtype, arch: Architecture) -> Iterator[Tile]:
    wide = dtype.itemsize == 4
    choices = product((16, 32), (32,), (4,), (2, 3)) if wide else product((64, 128, 256), (32, 64), (4, 8), (2, 3, 4))
    for block_n, block_k, warps, stages in choices:
        tile = replace(fixed, block_n=block_n, block_k=block_k, warps=warps, stages=stages, registers=255)
        sums = fixed.block_m * block_n // (32 * warps)  # registers a thread
        if sums <= 64 and _shared_bytes(tile, dtype, 1, dtype.itemsize) <= arch.shared_bytes:
            yield tile


def _attention(fixed: AttentionTile, shape: Shape, dtype: torch.dtype, arch: Architecture) -> Iterator[AttentionTile]:
    for factor, kv_split, stages in product((1, 2), (64, 128, 256, 512), (1, 2, 3)):
        tile = replace(fixed, block_kv=max(fixed.block_kv // factor, 16), kv_split=kv_split, stages=stages)
        cache_bytes = stages * 2 * tile.block_kv * shape.inner * dtype.itemsize
        if tile.block_kv <= kv_split and cache_bytes <= arch.shared_bytes:
            yield tile


def _shared_bytes(tile: Tile, dtype: torch.dtype, weights: int, activation_bytes: int) -> int:
    weight_bytes = weights * tile.block_n * tile.block_k * dtype.itemsize
    return tile.stages * (weight_bytes + tile.block_m * tile.block_k * activation_bytes)
