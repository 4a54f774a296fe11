"""Linear + cross-entropy: hidden states and head weight to losses, logits never in memory.

Each tile of the vocabulary leaves its maximum and sum of exponentials for each row, and the tile that holds a row's
target leaves that logit. A second kernel reduces the tiles in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels import checks, configs
from pyprune.triton_kernels.launch import architecture, cdiv, configured, launch, stride_unit
from pyprune.triton_kernels.products import banded, tile_products
from pyprune.triton_kernels.rows import padded_rows, rms_norm
from pyprune.triton_kernels.skinny_linear import needs_norm_first

ROWS_AT_ONCE = 8192  # bounds the partials: 64 MB for 128k tokens of vocabulary in tiles of 128
_BAND = 8  # row tiles that read a vocabulary tile together, so that it comes from memory once and stays in L2


@triton.jit(do_not_specialize=["M"])
def loss_tiles_kernel(x, x_units, norm, a, a_units, bias, targets, maxima, sums, picked, M, V, K, eps,
                      X_UNIT: tl.constexpr, W_UNIT: tl.constexpr, STREAM: tl.constexpr, BAND: tl.constexpr,
                      BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr,
                      STAGES: tl.constexpr,
                      ):  # fmt: skip
    """One tile of vocabulary (`a` is the head's weight) for one tile of rows. Grid: (row tiles x vocabulary tiles,)."""
    row_tile, tile = banded(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(V, BLOCK_N), BAND)
    m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    a_rows = a + tl.minimum(n, V - 1).to(tl.int64) * (a_units * W_UNIT)
    x_rows = x + tl.minimum(m, M - 1).to(tl.int64) * (x_units * X_UNIT)
    logits, _, squares = tile_products(
        x_rows, norm, a_rows, a_rows, 0, K, False, STREAM, BLOCK_M, BLOCK_N, BLOCK_K, VEC, STAGES
    )
    if norm is not None:
        logits *= tl.rsqrt(squares / K + eps)[None, :]
    if bias is not None:
        logits += tl.load(bias + n, mask=n < V, other=0.0).to(tl.float32)[:, None]
    logits = tl.where((n < V)[:, None], logits, float("-inf"))
    row = m < M
    target = tl.load(targets + m, mask=row, other=-1)
    hit = tl.sum(tl.where(n[:, None] == target[None, :], logits, 0.0), axis=0)
    here = (target >= tile * BLOCK_N) & (target < tl.minimum(tile * BLOCK_N + BLOCK_N, V))
    tl.store(picked + m, hit, mask=row & here)
    top = tl.max(logits, axis=0)
    at = tile.to(tl.int64) * M + m
    tl.store(maxima + at, top, mask=row)
    anchor = tl.where(top == float("-inf"), 0.0, top)  # a tile of -inf alone adds nothing: exp(-inf) = 0
    tl.store(sums + at, tl.sum(tl.exp(logits - anchor[None, :]), axis=0), mask=row)


@triton.jit(do_not_specialize=["M", "ignore_index"])
def reduce_tiles_kernel(maxima, sums, picked, targets, losses, M, V, tiles, ignore_index,
                        BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr,
                        ):  # fmt: skip
    """log-sum-exp over the tiles minus the target's logit. Grid: (row blocks,)."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = m < M
    top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, tiles, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        inside = (t < tiles)[:, None] & row[None, :]
        at = t.to(tl.int64)[:, None] * M + m[None, :]
        tops = tl.load(maxima + at, mask=inside, other=float("-inf"))
        higher = tl.maximum(top, tl.max(tops, axis=0))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)  # tiles of -inf so far
        parts = tl.load(sums + at, mask=inside, other=0.0) * tl.exp(tops - anchor[None, :])
        total = total * tl.exp(top - anchor) + tl.sum(parts, axis=0)
        top = higher
    target = tl.load(targets + m, mask=row, other=0)
    in_vocabulary = row & (target >= 0) & (target < V)
    loss = tl.log(tl.where(row, total, 1.0)) + (top - tl.load(picked + m, mask=in_vocabulary, other=0.0))
    # Targets outside the vocabulary cannot be reported without waiting for the GPU: their loss is NaN.
    loss = tl.where(in_vocabulary, loss, float("nan"))
    tl.store(losses + m, tl.where(target == ignore_index, 0.0, loss), mask=row)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, norm: Tensor | None = None, eps: float = 0.0,
    bias: Tensor | None = None, ignore_index: int = -100,
) -> Tensor:  # fmt: skip
    """-log softmax(h weight^T + bias)[target], float32 [...]; h = x [..., H], RMS-normalised where norm is given."""
    flat, device = checks.activations(x, "x", weight), x.device
    inner, vocab = flat.shape[1], weight.shape[0]
    checks.matrix(weight, inner, "weight", weight)
    checks.expect(vocab > 0, "weight: at least one row is expected")
    checks.vector(norm, inner, "norm", weight)
    checks.vector(bias, vocab, "bias", weight)
    targets = checks.indices(targets, tuple(x.shape[:-1]), "targets", device).view(-1)
    losses = torch.empty(x.shape[:-1], dtype=torch.float32, device=device)
    parts = zip(flat.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), losses.view(-1).split(ROWS_AT_ONCE), strict=True)
    for part, target, loss in parts:
        if loss.numel():
            _losses(part, weight, target, norm, eps, bias, ignore_index, loss)
    return losses


def _losses(
    x: Tensor, weight: Tensor, targets: Tensor, norm: Tensor | None, eps: float, bias: Tensor | None, ignore_index: int,
    losses: Tensor,
) -> None:  # fmt: skip
    (rows, inner), vocab, device = x.shape, weight.shape[0], x.device
    skinny = rows <= configs.SKINNY_ROWS
    if skinny:
        tile = configs.skinny_tile(architecture(device), rows, weight.dtype, pair=False)
    else:
        tile = configs.widened(architecture(device).gemm, weight.dtype)
        shape = configs.shape_of(tile, *weight.shape)
        tile = configured(tile, device, "linear_cross_entropy", weight.dtype, shape)
    if norm is not None and (not skinny or needs_norm_first(weight, tile)):
        x, norm = rms_norm(x, norm, eps, weight.dtype), None
    elif not skinny and x.dtype != weight.dtype:
        x = padded_rows(rows, inner, weight.dtype, device).copy_(x)
    tiles = cdiv(vocab, tile.block_n)
    maxima = torch.empty(tiles, rows, dtype=torch.float32, device=device)
    sums, picked = torch.empty_like(maxima), torch.empty(rows, dtype=torch.float32, device=device)
    x_unit, w_unit = stride_unit(x), stride_unit(weight)
    launch(
        loss_tiles_kernel, (cdiv(rows, tile.block_m) * tiles,), device, tile.warps, tile.stages, tile.registers, x=x,
        x_units=x.stride(0) // x_unit, norm=norm, a=weight, a_units=weight.stride(0) // w_unit, bias=bias,
        targets=targets, maxima=maxima, sums=sums, picked=picked, M=rows, V=vocab, K=inner, eps=eps, X_UNIT=x_unit,
        W_UNIT=w_unit, STREAM=skinny, BAND=_BAND, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k,
        VEC=16 // weight.element_size(), STAGES=tile.stages,
    )  # fmt: skip
    launch(
        reduce_tiles_kernel, (cdiv(rows, 8),), device, 4, 1, maxima=maxima, sums=sums, picked=picked, targets=targets,
        losses=losses, M=rows, V=vocab, tiles=tiles, ignore_index=ignore_index, BLOCK_T=128, BLOCK_M=8,
    )  # fmt: skip
