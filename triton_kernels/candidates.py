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
        found = [fixed, *_attention(fixed, shape, dtype, arch)]
    elif operator == "linear_cross_entropy":
        fixed = configs.widened(arch.loss, dtype)
        found = [fixed, *_loss(fixed, dtype, arch)]
    elif operator in (*PAIRS, *SINGLES) and shape.rows <= configs.SKINNY_ROWS:
        pair = operator in PAIRS
        fixed = configs.skinny_tile(arch, shape.rows, dtype, pair)
        tiles = _gemv(fixed, dtype, pair) if fixed.rows <= configs.GEMV_ROWS else _dot(fixed, dtype, pair, arch)
        found = [fixed, *(replace(one, programs=n) for one in tiles for n in _programs(one, shape))]
    else:
        raise ValueError(f"operator: {operator} with {shape.rows} rows is not tuned")
    if shape.rows != (fixed.queries if isinstance(fixed, AttentionTile) else fixed.rows):
        raise ValueError(f"shape: {shape.rows} rows are not a class of {operator}")
    return list(dict.fromkeys(found))


def _programs(tile: Tile, shape: Shape) -> tuple[int, ...]:
    """Choices of `programs`; one where there are tiles for every processor (a GPU has at most 256), so no splits."""
    least = shape.columns // 2 // (2 * tile.columns)  # a class begins at half its size; a tile of qkv has two halves
    return (tile.programs,) if least >= 256 else (1, 2, 4)


def _gemv(fixed: Tile, dtype: torch.dtype, pair: bool) -> Iterator[Tile]:
    """4 to 8 loads of 16 bytes in flight a thread, as far as registers go."""
    for columns, stretch, warps in product((2, 4, 8, 16), (1024, 2048) if pair else (1024, 2048, 4096), (4, 8)):
        loads = (1 + pair) * columns * stretch // (16 * 32 * warps)  # `stretch`: bytes of K a step
        if 4 <= loads <= (4 if fixed.rows == 2 else 8):
            yield replace(fixed, columns=columns, inner=stretch // dtype.itemsize, warps=warps)


def _dot(fixed: Tile, dtype: torch.dtype, pair: bool, arch: Architecture) -> Iterator[Tile]:
    wide = dtype.itemsize == 4  # no matrix units: the fixed tile's sums already fill the registers
    columns = (16, fixed.columns) if wide else (16, 32, 64)
    for width, inner, stages in product(columns, (32,) if wide else (32, 64, 128), (2, 3, 4)):
        # Registers a thread: sums, and with a norm the activations and their squares as float32. Told how many it may
        # take, ptxas does not spill a few of them for an occupancy of its own.
        sums, normalised = (1 + pair) * fixed.rows * width, fixed.rows * inner
        if sums > 4096 or normalised > 4096 // (1 + pair):
            continue
        registers = 255 if wide or normalised >= 2048 else 168  # two or three programs a processor
        tile = replace(fixed, columns=width, inner=inner, stages=stages, registers=registers)
        if _shared_bytes(tile, dtype, 1 + pair, activation_bytes=4) <= arch.shared_bytes:
            yield tile


def _loss(fixed: Tile, dtype: torch.dtype, arch: Architecture) -> Iterator[Tile]:
    wide = dtype.itemsize == 4
    choices = product((16, 32), (32,), (4,), (2, 3)) if wide else product((64, 128, 256), (32, 64), (4, 8), (2, 3, 4))
    for columns, inner, warps, stages in choices:
        tile = replace(fixed, columns=columns, inner=inner, warps=warps, stages=stages, registers=255)
        sums = fixed.rows * columns // (32 * warps)  # registers a thread
        if sums <= 64 and _shared_bytes(tile, dtype, 1, dtype.itemsize) <= arch.shared_bytes:
            yield tile


def _attention(fixed: AttentionTile, shape: Shape, dtype: torch.dtype, arch: Architecture) -> Iterator[AttentionTile]:
    for factor, stretch, stages in product((1, 2), (64, 128, 256, 512), (1, 2, 3)):
        tile = replace(fixed, keys=max(fixed.keys // factor, 16), stretch=stretch, stages=stages)
        needed = stages * 2 * tile.keys * shape.inner * dtype.itemsize
        if tile.keys <= stretch and needed <= arch.shared_bytes:
            yield tile


def _shared_bytes(tile: Tile, dtype: torch.dtype, weights: int, activation_bytes: int) -> int:
    weight_bytes = weights * tile.columns * tile.inner * dtype.itemsize
    return tile.stages * (weight_bytes + tile.rows * tile.inner * activation_bytes)
