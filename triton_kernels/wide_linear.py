"""Fused GEMM for sizes that GEMM libraries have no fast kernel for: x W^T with odd K or N, for more than SKINNY_ROWS
rows. `gemm.takes` names the odd sizes that torch's GEMM takes nevertheless.

The end of K is masked, so that a weight with padded rows is read in wide loads at any K. Gate and up are read together,
their SiLU product is taken in registers. Where tiles are fewer than SMs K is split, and `sum_splits_kernel` adds the
splits in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels import configs
from pyprune.triton_kernels.launch import architecture, cdiv, dependent, launch, row_stride, stride_unit
from pyprune.triton_kernels.products import banded, is_live, tile_products
from pyprune.triton_kernels.rows import padded_rows
from pyprune.triton_kernels.skinny_linear import finish, sum_splits_kernel

_BAND = 8  # row tiles that read a tile of weights together, so that it comes from memory once and stays in L2


@triton.jit(do_not_specialize=["sublayer", "M", "steps"])
def wide_linear_kernel(x, x_units, a, a_units, a_bias, b, b_units, b_bias, residual, out, out_row, parts, skip,
                       sublayer, M, N, K, steps,
                       X_UNIT: tl.constexpr, W_UNIT: tl.constexpr, BAND: tl.constexpr, BLOCK_M: tl.constexpr,
                       BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr, STAGES: tl.constexpr,
                       ):  # fmt: skip
    """One tile of rows and columns over one split of K. Grid: (row tiles x column tiles, splits)."""
    PAIR: tl.constexpr = b is not None
    live = is_live(skip, sublayer)
    split = tl.program_id(1)
    row_tile, column_tile = banded(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), BAND)
    n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    # Indices are clamped instead of masked: the last row is read again and its result never stored.
    column = tl.minimum(n, N - 1).to(tl.int64)
    a_rows = a + column * (a_units * W_UNIT)
    b_rows = b + column * (b_units * W_UNIT) if PAIR else a_rows
    x_rows = x + tl.minimum(m, M - 1).to(tl.int64) * (x_units * X_UNIT)
    lo = split * steps * BLOCK_K
    hi = tl.where(live, tl.minimum(lo + steps * BLOCK_K, K), lo)  # a skipped sublayer reads no weights
    acc_a, acc_b, squares = tile_products(
        x_rows, None, a_rows, b_rows, lo, hi, PAIR, False, BLOCK_M, BLOCK_N, BLOCK_K, VEC, STAGES
    )
    if parts is None:
        finish(acc_a, acc_b, squares, n, m, a_bias, b_bias, residual, out, out_row, live, M, N, K, 0.0, False, PAIR)
    else:
        kept = tl.where(live, M, 0)
        inside = (n < N)[:, None] & (m < kept)[None, :]
        first = split.to(tl.int64) * (2 if PAIR else 1) * M
        tl.store(parts + (first + m)[None, :] * N + n[:, None], acc_a, mask=inside)
        if PAIR:
            tl.store(parts + (first + M + m)[None, :] * N + n[:, None], acc_b, mask=inside)


def wide_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, up: Tensor | None = None,
    up_bias: Tensor | None = None, residual: Tensor | None = None, skip: Tensor | None = None, sublayer: int = 0,
) -> Tensor:  # fmt: skip
    """out [M, N] = x weight^T + bias for x [M, K] of any number of rows; `up` and `residual` as in `skinny_linear`."""
    (rows, inner), columns, device = x.shape, weight.shape[0], x.device
    if rows == 0 or columns == 0:
        return out
    if x.dtype != weight.dtype or (inner and stride_unit(x) == 1 < stride_unit(weight)):
        x = padded_rows(rows, inner, weight.dtype, device).copy_(x)
    arch, pair = architecture(device), up is not None
    tile = configs.gemm_tile(arch, weight.dtype, pair)
    tiles = cdiv(rows, tile.block_m) * cdiv(columns, tile.block_n)
    splits, steps = configs.splits_for(arch, tiles, inner, tile)
    parts = x.new_empty(splits, 1 + pair, rows, columns, dtype=torch.float32) if splits > 1 else None
    x_unit, w_unit = stride_unit(x), stride_unit(weight, *([up] if pair else []))
    shared = dict(a_bias=bias, b_bias=up_bias, residual=residual, out=out, out_row=row_stride(out), parts=parts,
                  skip=skip,
                  sublayer=sublayer, M=rows, N=columns, K=inner)  # fmt: skip
    launch(
        wide_linear_kernel, (tiles, splits), device, tile.warps, tile.stages, tile.registers, **shared, x=x,
        x_units=x.stride(0) // x_unit, a=weight, a_units=weight.stride(0) // w_unit, b=up,
        b_units=0 if up is None else up.stride(0) // w_unit, steps=steps, X_UNIT=x_unit, W_UNIT=w_unit, BAND=_BAND,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, VEC=16 // weight.element_size(),
        STAGES=tile.stages,
    )  # fmt: skip
    if splits > 1:
        launch(
            sum_splits_kernel, (cdiv(columns, 128), cdiv(rows, 4)), device, 4, 1, **shared, part_squares=None, eps=0.0,
            splits=splits, PAIR=pair, NORM=False, BLOCK_M=4, BLOCK_N=128, PDL=dependent(device),
        )  # fmt: skip
    return out
