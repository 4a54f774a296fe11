"""Skinny projections (1 to 64 rows): x W^T with the norm before it and bias, SiLU product or residual after it.

Where column tiles are fewer than SMs, K is split: the parts go to a workspace and a second kernel sums them in a fixed
order, so that the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels import configs
from pyprune.triton_kernels.launch import architecture, cdiv, dependent, launch, row_stride, skinny_tile, stride_unit
from pyprune.triton_kernels.products import begin_kernel, is_live, tile_products
from pyprune.triton_kernels.rows import rms_norm


@triton.jit
def _bias(bias, n, N):
    return tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]


@triton.jit
def finish(acc_a, acc_b, squares, n, m, a_bias, b_bias, residual, out, out_row, live, M, N, K, eps,
           NORM: tl.constexpr, PAIR: tl.constexpr,
           ):  # fmt: skip
    """Sums of products -> inverse RMS, biases, SiLU product, residual -> out [M, N], its rows out_row apart."""
    inside = (n < N)[:, None] & (m < M)[None, :]
    if NORM:
        inverse = tl.rsqrt(squares / K + eps)[None, :]
        acc_a *= inverse
        acc_b *= inverse
    if a_bias is not None:
        acc_a += _bias(a_bias, n, N)
    if PAIR:
        if b_bias is not None:
            acc_b += _bias(b_bias, n, N)
        acc_a = acc_a / (1.0 + tl.exp(-acc_a)) * acc_b
    acc_a = tl.where(live, acc_a, 0.0)
    if residual is not None:
        acc_a += tl.load(residual + m.to(tl.int64)[None, :] * N + n[:, None], mask=inside, other=0.0).to(tl.float32)
    at = out + m.to(tl.int64)[None, :] * out_row + n[:, None]
    tl.store(at, acc_a.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["sublayer", "M", "steps"])
def skinny_linear_kernel(x, x_units, norm, a, a_units, a_bias, b, b_units, b_bias, residual, out, out_row, parts,
                         part_squares, skip, sublayer, M, N, K, steps, eps,
                         X_UNIT: tl.constexpr, W_UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                         BLOCK_K: tl.constexpr, VEC: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
                         ):  # fmt: skip
    """One tile of columns over one split of K. Grid: (column tiles, splits)."""
    begin_kernel(PDL)
    PAIR: tl.constexpr = b is not None
    NORM: tl.constexpr = norm is not None
    live = is_live(skip, sublayer)
    split = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    # Indices are clamped instead of masked: the last row is read again and its result never stored.
    row = tl.minimum(n, N - 1).to(tl.int64)
    a_rows = a + row * (a_units * W_UNIT)
    b_rows = b + row * (b_units * W_UNIT) if PAIR else a_rows
    lo = split * steps * BLOCK_K
    hi = tl.where(live, tl.minimum(lo + steps * BLOCK_K, K), lo)  # a skipped sublayer reads no weights
    x_rows = x + tl.minimum(m, M - 1).to(tl.int64) * (x_units * X_UNIT)
    acc_a, acc_b, squares = tile_products(
        x_rows, norm, a_rows, b_rows, lo, hi, PAIR, True, BLOCK_M, BLOCK_N, BLOCK_K, VEC, STAGES
    )
    if parts is None:
        finish(acc_a, acc_b, squares, n, m, a_bias, b_bias, residual, out, out_row, live, M, N, K, eps, NORM, PAIR)
    else:
        kept = tl.where(live, M, 0)  # of a skipped sublayer nothing is stored, and the second kernel reads nothing
        inside = (n < N)[:, None] & (m < kept)[None, :]
        SETS: tl.constexpr = 2 if PAIR else 1
        first = split * SETS * M
        tl.store(parts + (first + m).to(tl.int64)[None, :] * N + n[:, None], acc_a, mask=inside)
        if PAIR:
            tl.store(parts + (first + M + m).to(tl.int64)[None, :] * N + n[:, None], acc_b, mask=inside)
        if NORM:
            tl.store(part_squares + split * M + m, squares, mask=m < tl.where(tl.program_id(0) == 0, kept, 0))


@triton.jit(do_not_specialize=["sublayer", "M", "splits"])
def sum_splits_kernel(parts, part_squares, a_bias, b_bias, residual, out, out_row, skip, sublayer, M, N, K, splits, eps,
                      PAIR: tl.constexpr, NORM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                      PDL: tl.constexpr,
                      ):  # fmt: skip
    """Adds the splits' parts in their order and finishes. Grid: (column tiles, row tiles)."""
    begin_kernel(PDL)
    live = is_live(skip, sublayer)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    kept = tl.where(live, M, 0)
    inside = (n < N)[:, None] & (m < kept)[None, :]
    SETS: tl.constexpr = 2 if PAIR else 1
    acc_a = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    acc_b = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for split in range(0, splits):
        offsets = (split * SETS * M + m).to(tl.int64)[None, :] * N + n[:, None]
        acc_a += tl.load(parts + offsets, mask=inside, other=0.0)
        if PAIR:
            acc_b += tl.load(parts + offsets + M * N, mask=inside, other=0.0)
        if NORM:
            squares += tl.load(part_squares + split * M + m, mask=m < kept, other=0.0)
    finish(acc_a, acc_b, squares, n, m, a_bias, b_bias, residual, out, out_row, live, M, N, K, eps, NORM, PAIR)


def skinny_linear(
    operator: str, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, norm: Tensor | None = None,
    eps: float = 0.0, up: Tensor | None = None, up_bias: Tensor | None = None, residual: Tensor | None = None,
    skip: Tensor | None = None, sublayer: int = 0,
) -> Tensor:  # fmt: skip
    """out [M, N] = h weight^T + bias, h = x [M, K] or RMSNorm(x) with `norm`; 1 to 64 rows.

    `operator`: the caller's name, for the tuned tile. With `up` (as large as `weight`): silu(h weight^T + bias) *
    (h up^T + up_bias). With `residual` [M, N], contiguous: added. `out` [..., N], in any of the three float dtypes, is
    contiguous or of `empty_rows`; what lies between its rows is not written.
    """
    rows, inner = x.shape
    columns = weight.shape[0]
    if rows == 0 or columns == 0:
        return out
    pair, device = up is not None, x.device
    tile = skinny_tile(device, operator, rows, weight, pair)
    if norm is not None and needs_norm_first(weight, tile):
        x, norm = rms_norm(x, norm, eps, weight.dtype), None
    tiles = cdiv(columns, tile.block_n)
    splits, steps = configs.splits_for(architecture(device), tiles, inner, tile)
    parts = squares = None
    if splits > 1:
        parts = x.new_empty(splits, 1 + pair, rows, columns, dtype=torch.float32)
        squares = x.new_empty(splits, rows, dtype=torch.float32) if norm is not None else None
    x_unit, w_unit = stride_unit(x), stride_unit(weight, *([up] if pair else []))
    shared = dict(a_bias=bias, b_bias=up_bias, residual=residual, out=out, out_row=row_stride(out), parts=parts,
                  part_squares=squares, skip=skip, sublayer=sublayer, M=rows, N=columns, K=inner, eps=eps)  # fmt: skip
    launch(
        skinny_linear_kernel, (tiles, splits), device, tile.warps, tile.stages, tile.registers, **shared, x=x,
        x_units=x.stride(0) // x_unit, norm=norm, a=weight, a_units=weight.stride(0) // w_unit, b=up,
        b_units=0 if up is None else up.stride(0) // w_unit, steps=steps, X_UNIT=x_unit, W_UNIT=w_unit,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, VEC=16 // weight.element_size(),
        STAGES=tile.stages, PDL=dependent(device),
    )  # fmt: skip
    if splits > 1:
        launch(
            sum_splits_kernel, (cdiv(columns, 128), cdiv(rows, 4)), device, 4, 1, **shared, splits=splits, PAIR=pair,
            NORM=norm is not None, BLOCK_M=4, BLOCK_N=128, PDL=dependent(device),
        )  # fmt: skip
    return out


def needs_norm_first(weight: Tensor, tile: configs.Tile) -> bool:
    """Whether rows must be normalised before the product: float16 on the tensor cores.

    There x * norm is rounded to float16 before the row's RMS is known, and embeddings of 0.01 would fall among
    float16's subnormal numbers. bfloat16 has float32's range, and a GEMV multiplies in float32.
    """
    return weight.dtype == torch.float16 and tile.block_m > configs.GEMV_ROWS
