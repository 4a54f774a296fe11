"""Attention of a few query tokens against the KV cache, split over the sequence and reduced in a fixed order.

One program takes the query heads that share a KV head against one KV split, a fixed number of cache rows, so that the
bits do not depend on the batch. A second kernel reduces the splits. Many query tokens are enough programs without
splitting. Of a sliding window only the splits that it reaches are read, and of a skipped sublayer nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.strides import empty_rows
from pyprune.triton_kernels import checks, configs
from pyprune.triton_kernels.launch import (
    MAX_GRID,
    architecture,
    cdiv,
    configured,
    dependent,
    launch,
    power_of_2,
)
from pyprune.triton_kernels.products import begin_kernel, is_live

SPLIT_TOKENS = 16  # up to this many query tokens the cache is split; the choice is the same for every batch
LOG2_E = 1.4426950408889634


@triton.jit
def _first_row(first, batch, limit, live):
    """(first row that this sequence sees, limit): a limit of 0, so no row at all, where it is outside the cache."""
    limit = tl.where(live, limit, 0)
    if first is None:
        return tl.full((), 0, tl.int64), limit
    else:
        row = tl.load(first + batch)
        return row, tl.where((row >= 0) & (row < limit), limit, 0)


@triton.jit
def _seen_rows(position, first, limit, window):
    """Whether the position is in the cache, and the rows [begin, end) that a query there sees: at least its own."""
    known = (position >= 0) & (position < limit)
    begin = tl.maximum(tl.where(window > 0, position + 1 - window, 0), first)
    begin = tl.where(known, tl.minimum(begin, position), limit)
    return known, begin.to(tl.int32), tl.where(known, position + 1, 0).to(tl.int32)


@triton.jit(do_not_specialize=["sublayer", "tokens", "window"])
def attention_kernel(q, k_cache, k_batch, k_head, k_row, v_cache, v_batch, v_head, v_row, positions, first, out,
                     out_row, parts, peaks, skip, sublayer, tokens, limit, window, kv_split, scale,
                     HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, UNIT: tl.constexpr,
                     DOT: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr, BLOCK_D: tl.constexpr,
                     STAGES: tl.constexpr, PDL: tl.constexpr,
                     ):  # fmt: skip
    """Queries of one KV head against one KV split of `kv_split` rows. Grid: (splits, query tiles, batch x KV heads).

    Cache strides are counted in UNIT elements. Softmax runs in powers of two: `scale` contains log2(e).
    """
    begin_kernel(PDL)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    live = is_live(skip, sublayer)
    split = tl.program_id(0)
    batch = (tl.program_id(2) // KV_HEADS).to(tl.int64)
    group = tl.program_id(2) % KV_HEADS
    r = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row = r < tokens * GROUP
    query = batch * tokens + r // GROUP
    head = group * GROUP + r % GROUP
    position = tl.load(positions + query, mask=row, other=-1)
    first_row, limit = _first_row(first, batch, limit, live)
    known, begin, end = _seen_rows(position, first_row, limit, window)
    d = tl.arange(0, BLOCK_D)
    whole: tl.constexpr = BLOCK_D == HEAD_DIM
    at = (query * HEADS + head)[:, None] * HEAD_DIM + d[None, :]
    values = tl.load(q + at, mask=known[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    lo = tl.maximum(split * kv_split, tl.min(begin, axis=0))
    hi = tl.minimum(split * kv_split + kv_split, tl.max(end, axis=0))
    until = tl.minimum(end, hi)  # a step that begins at the window's first row may reach past the split
    k_rows = k_cache + (batch * k_batch + group.to(tl.int64) * k_head) * UNIT
    v_rows = v_cache + (batch * v_batch + group.to(tl.int64) * v_head) * UNIT
    peak = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in tl.range(lo, hi, BLOCK_KV, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_KV)
        inside = (rows < hi)[:, None]
        if not whole:
            inside = inside & (d < HEAD_DIM)[None, :]
        keys = tl.load(k_rows + rows.to(tl.int64)[:, None] * (k_row * UNIT) + d[None, :], mask=inside, other=0.0)
        values_v = tl.load(v_rows + rows.to(tl.int64)[:, None] * (v_row * UNIT) + d[None, :], mask=inside, other=0.0)
        if DOT:
            scores = tl.dot(values.to(keys.dtype), tl.trans(keys), input_precision="ieee")
        else:
            scores = tl.sum(values.to(tl.float32)[:, None, :] * keys.to(tl.float32)[None, :, :], axis=2)
        sees = (rows[None, :] >= begin[:, None]) & (rows[None, :] < until[:, None])
        scores = tl.where(sees, scores * scale, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)  # a query that sees nothing here: exp2(-inf) = 0
        weights = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(peak - anchor)
        total = total * shrink + tl.sum(weights, axis=1)
        if DOT:
            acc = tl.dot(weights.to(values_v.dtype), values_v, acc * shrink[:, None], input_precision="ieee")
        else:
            acc = acc * shrink[:, None] + tl.sum(weights[:, :, None] * values_v.to(tl.float32)[None, :, :], axis=1)
        peak = higher
    stored = row[:, None] & (d < HEAD_DIM)[None, :]
    if parts is None:
        result = acc / total[:, None]
        result = tl.where(live, tl.where(known[:, None], result, float("nan")), 0.0)
        at = query[:, None] * out_row + head[:, None] * HEAD_DIM + d[None, :]
        tl.store(out + at, result.to(out.dtype.element_ty), mask=stored)
    else:
        # A split that a query does not reach is not stored; the reduction does not read it.
        reached = (split * kv_split < end) & (split * kv_split + kv_split > begin)
        slot = (query * HEADS + head) * tl.num_programs(0) + split
        tl.store(parts + slot[:, None] * HEAD_DIM + d[None, :], acc, mask=stored & reached[:, None])
        tl.store(peaks + slot * 2, peak, mask=reached)
        tl.store(peaks + slot * 2 + 1, total, mask=reached)


@triton.jit(do_not_specialize=["sublayer", "tokens", "window"])
def reduce_splits_kernel(parts, peaks, positions, first, out, out_row, skip, sublayer, tokens, splits, limit, window,
                         kv_split,
                         HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr,
                         ):  # fmt: skip
    """One query head a program, splits in their order. Grid: (batch x tokens x heads,)."""
    begin_kernel(PDL)
    live = is_live(skip, sublayer)
    index = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + index // HEADS)
    first_row, limit = _first_row(first, index // HEADS // tokens, limit, live)
    known, begin, end = _seen_rows(position, first_row, limit, window)
    reached, past = begin // kv_split, tl.cdiv(end, kv_split)
    d = tl.arange(0, BLOCK_D)
    inside = d < HEAD_DIM
    peak = tl.full((), float("-inf"), tl.float32)
    for s in range(reached, past):
        peak = tl.maximum(peak, tl.load(peaks + (index * splits + s) * 2))
    total = tl.zeros((), tl.float32)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for s in range(reached, past):
        slot = index * splits + s
        share = tl.exp2(tl.load(peaks + slot * 2) - peak)
        total += share * tl.load(peaks + slot * 2 + 1)
        acc += share * tl.load(parts + slot * HEAD_DIM + d, mask=inside, other=0.0)
    result = tl.where(live, tl.where(known, acc / total, float("nan")), 0.0)
    at = index // HEADS * out_row + index % HEADS * HEAD_DIM + d
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


def _stride_unit(*caches: Tensor) -> int:
    """As `launch.stride_unit`, for the three leading strides of the caches."""
    size = 16 // caches[0].element_size()
    aligned = all(c.data_ptr() % 16 == 0 and all(c.stride(i) % size == 0 for i in range(3)) for c in caches)
    return size if aligned else 1


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, positions: Tensor, scale: float, skip: Tensor | None = None,
    sublayer: int = 0, first: Tensor | None = None, window: int = 0,
) -> Tensor:  # fmt: skip
    """softmax(scale q k^T) v for q [B, T, N, D]: query (b, t) sees cache rows first[b] (0) .. positions[b, t], of them
    the last `window` where that is positive, and always its own."""
    checks.expect(q.dim() == 4, f"q: [batch, tokens, heads, head size] is expected, not {list(q.shape)}")
    batch, tokens, heads, head_dim = q.shape
    device = q.device
    checks.caches(k_cache, v_cache, batch, device)
    checks.activations(q, "q", k_cache)
    kv_heads = k_cache.shape[1]
    checks.expect(
        k_cache.shape[3] == head_dim and kv_heads > 0 and heads % kv_heads == 0,
        f"q: heads of size {k_cache.shape[3]} in a multiple of {kv_heads} are expected, not {heads} of {head_dim}",
    )
    places = checks.indices(positions, (batch, tokens), "positions", device)
    starts = None if first is None else checks.indices(first, (batch,), "first", device)
    checks.expect(window >= 0, f"window: {window} given; 0 (none) or a positive number is expected")
    checks.skip_mask(skip, sublayer, device)
    q = q.contiguous()
    # The projection that comes next reads a token's heads as one row.
    by_token = empty_rows(batch * tokens, heads * head_dim, dtype=q.dtype, device=device)
    out, out_row = by_token.view(q.shape), by_token.stride(0)
    if out.numel() == 0:
        return out

    sequences = max(MAX_GRID[2] // kv_heads, 1)  # in a grid, whose z is batch x KV heads
    if batch <= sequences:
        _attend(q, k_cache, v_cache, places, scale, skip, sublayer, starts, window, out, out_row)
        return out
    for at in range(0, batch, sequences):
        part = slice(at, at + sequences)
        first_rows = None if starts is None else starts[part]
        caches = k_cache[part], v_cache[part]
        _attend(q[part], *caches, places[part], scale, skip, sublayer, first_rows, window, out[part], out_row)
    return out


def _attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, places: Tensor, scale: float, skip: Tensor | None, sublayer: int,
    starts: Tensor | None, window: int, out: Tensor, out_row: int,
) -> None:  # fmt: skip
    (batch, tokens, heads, head_dim), device = q.shape, q.device
    kv_heads, length = k_cache.shape[1], k_cache.shape[2]
    rows = tokens * (heads // kv_heads)
    split = tokens <= SPLIT_TOKENS
    tile = configs.attention_tile(architecture(device), rows, head_dim, k_cache.dtype, split)
    if split:
        shape = configs.attention_shape(tile, length, head_dim)
        tile = configured(tile, device, "decode_attention", k_cache.dtype, shape)
    splits = max(cdiv(length, tile.kv_split), 1) if split else 1
    kv_split = tile.kv_split if splits > 1 else max(length, 1)
    block_d = power_of_2(head_dim, 16)
    parts = peaks = None
    if splits > 1:
        parts = torch.empty(batch * tokens * heads, splits, head_dim, dtype=torch.float32, device=device)
        peaks = torch.empty(batch * tokens * heads, splits, 2, dtype=torch.float32, device=device)
    u = _stride_unit(k_cache, v_cache)
    launch(
        attention_kernel, (splits, cdiv(rows, tile.block_q), batch * kv_heads), device, tile.warps, tile.stages, q=q,
        k_cache=k_cache, k_batch=k_cache.stride(0) // u, k_head=k_cache.stride(1) // u, k_row=k_cache.stride(2) // u,
        v_cache=v_cache, v_batch=v_cache.stride(0) // u, v_head=v_cache.stride(1) // u, v_row=v_cache.stride(2) // u,
        positions=places, first=starts, out=out, out_row=out_row, parts=parts, peaks=peaks, skip=skip,
        sublayer=sublayer, tokens=tokens, limit=length, window=window, kv_split=kv_split, scale=scale * LOG2_E,
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, UNIT=u, DOT=rows > configs.GEMV_ROWS, BLOCK_Q=tile.block_q,
        BLOCK_KV=tile.block_kv, BLOCK_D=block_d, STAGES=tile.stages, PDL=dependent(device),
    )  # fmt: skip
    if splits > 1:
        launch(
            reduce_splits_kernel, (batch * tokens * heads,), device, 2, 1, parts=parts, peaks=peaks, positions=places,
            first=starts, out=out, out_row=out_row, skip=skip, sublayer=sublayer, tokens=tokens, splits=splits,
            limit=length, window=window, kv_split=kv_split, HEADS=heads, HEAD_DIM=head_dim, BLOCK_D=block_d,
            PDL=dependent(device),
        )  # fmt: skip
