"""RMSNorm, Q/K/V projection, q/k-norm, RoPE and the append to the KV cache.

A tile of the projection holds pairs (i, i + D/2) of a head, so that RoPE rotates them in registers. The kernel finishes
the tile itself unless K is split or a q/k-norm needs a whole head at once. Then a second kernel, which also follows
torch's GEMM, finishes one head of some rows a program.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyprune.triton_kernels import checks, configs
from pyprune.triton_kernels.gemm import gemm
from pyprune.triton_kernels.launch import architecture, cdiv, dependent, launch, power_of_2, skinny_tile
from pyprune.triton_kernels.launch import stride_unit as alignment
from pyprune.triton_kernels.products import begin_kernel, is_live, tile_products
from pyprune.triton_kernels.rows import rms_norm
from pyprune.triton_kernels.skinny_linear import needs_norm_first


@triton.jit
def _of_head(q, k, v, head, HEADS: tl.constexpr, KV_HEADS: tl.constexpr):
    """The value of q, k or v that belongs to this head. Heads are numbered q, then k, then v."""
    return tl.where(head < HEADS, q, tl.where(head < HEADS + KV_HEADS, k, v))


@triton.jit
def _pairs(vector, first, p, enabled, HALF: tl.constexpr):
    """The two halves of a head of a bias or norm as columns; zeros where not enabled."""
    inside = p < tl.where(enabled, HALF, 0)
    left = tl.load(vector + first + p, mask=inside, other=0.0).to(tl.float32)[:, None]
    return left, tl.load(vector + first + HALF + p, mask=inside, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _rotate_and_append(a, b, p, m, head, q_bias, k_bias, v_bias, q_norm, k_norm, cos, sin, cos_stride, sin_stride,
                       positions, slots, q_out, k_cache, k_batch, k_head, k_row, v_cache, v_batch, v_head, v_row, live,
                       M, tokens, limit, slot_limit, eps,
                       HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
                       ):  # fmt: skip
    """a, b [pairs, rows]: the two halves of a head -> bias, q/k-norm, RoPE -> q_out or its row of a cache.

    The row is `slots`, or the position where slots is None.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    is_q = head < HEADS
    is_k = (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_v = head >= HEADS + KV_HEADS
    local = head - _of_head(0, HEADS, HEADS + KV_HEADS, head, HEADS, KV_HEADS)
    first = local * HEAD_DIM
    if q_bias is not None:
        left, right = _pairs(q_bias, first, p, is_q, HALF)
        a += left
        b += right
    if k_bias is not None:
        left, right = _pairs(k_bias, first, p, is_k, HALF)
        a += left
        b += right
    if v_bias is not None:
        left, right = _pairs(v_bias, first, p, is_v, HALF)
        a += left
        b += right
    if q_norm is not None:
        inverse = tl.rsqrt(tl.sum(a * a + b * b, axis=0) / HEAD_DIM + eps)[None, :]
        left, right = _pairs(q_norm, 0, p, is_q, HALF)
        a = tl.where(is_q, a * inverse * left, a)
        b = tl.where(is_q, b * inverse * right, b)
    if k_norm is not None:
        inverse = tl.rsqrt(tl.sum(a * a + b * b, axis=0) / HEAD_DIM + eps)[None, :]
        left, right = _pairs(k_norm, 0, p, is_k, HALF)
        a = tl.where(is_k, a * inverse * left, a)
        b = tl.where(is_k, b * inverse * right, b)
    row = m < M
    position = tl.load(positions + m, mask=row, other=-1)
    known = (position >= 0) & (position < tl.where(live, limit, 0))
    slot = position
    if slots is not None:
        slot = tl.load(slots + m, mask=row, other=-1)
        known = known & (slot >= 0) & (slot < slot_limit)
    inside = (p < HALF)[:, None] & row[None, :]
    followed = (p < HALF)[:, None] & known[None, :]
    turn = (p < tl.where(is_v, 0, HALF))[:, None] & known[None, :]
    c = tl.load(cos + position[None, :] * cos_stride + p[:, None], mask=turn, other=1.0)
    s = tl.load(sin + position[None, :] * sin_stride + p[:, None], mask=turn, other=0.0)
    left = tl.where(is_v, a, a * c - b * s)
    right = tl.where(is_v, b, b * c + a * s)
    if is_q:
        at = q_out + (m.to(tl.int64)[None, :] * HEADS + local) * HEAD_DIM + p[:, None]
        # A position or slot outside its range has no row: its query is NaN, so that nobody takes it for a result.
        left = tl.where(live, tl.where(known[None, :], left, float("nan")), 0.0)
        right = tl.where(live, tl.where(known[None, :], right, float("nan")), 0.0)
        tl.store(at, left.to(q_out.dtype.element_ty), mask=inside)
        tl.store(at + HALF, right.to(q_out.dtype.element_ty), mask=inside)
    batch = (m // tokens).to(tl.int64)[None, :]
    if is_k:
        at = k_cache + batch * k_batch + local.to(tl.int64) * k_head + slot[None, :] * k_row + p[:, None]
        tl.store(at, left.to(k_cache.dtype.element_ty), mask=followed)
        tl.store(at + HALF, right.to(k_cache.dtype.element_ty), mask=followed)
    if is_v:
        at = v_cache + batch * v_batch + local.to(tl.int64) * v_head + slot[None, :] * v_row + p[:, None]
        tl.store(at, left.to(v_cache.dtype.element_ty), mask=followed)
        tl.store(at + HALF, right.to(v_cache.dtype.element_ty), mask=followed)


@triton.jit(do_not_specialize=["sublayer", "M", "steps", "tokens"])
def qkv_rope_kernel(x, x_units, norm, a, a_units, k_weight, k_units, v_weight, v_units, q_bias, k_bias, v_bias, cos,
                    sin, cos_stride, sin_stride, positions, slots, q_out, k_cache, k_batch, k_head, k_row, v_cache,
                    v_batch, v_head, v_row, parts, part_squares, skip, sublayer, M, K, steps, tokens, limit, slot_limit,
                    eps,
                    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, X_UNIT: tl.constexpr,
                    W_UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
                    VEC: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
                    ):  # fmt: skip
    """Some pairs of one head over one split of K (`a` is the query weight). Grid: (heads x pair tiles, splits)."""
    begin_kernel(PDL)
    HALF: tl.constexpr = HEAD_DIM // 2
    TILES: tl.constexpr = (HALF + BLOCK_P - 1) // BLOCK_P
    live = is_live(skip, sublayer)
    head = tl.program_id(0) // TILES
    split = tl.program_id(1)
    p = tl.program_id(0) % TILES * BLOCK_P + tl.arange(0, BLOCK_P)
    m = tl.arange(0, BLOCK_M)
    local = head - _of_head(0, HEADS, HEADS + KV_HEADS, head, HEADS, KV_HEADS)
    weight = _of_head(a, k_weight, v_weight, head, HEADS, KV_HEADS)
    stride = _of_head(a_units, k_units, v_units, head, HEADS, KV_HEADS) * W_UNIT
    column = (local * HEAD_DIM + tl.minimum(p, HALF - 1)).to(tl.int64)
    lo = split * steps * BLOCK_K
    hi = tl.where(live, tl.minimum(lo + steps * BLOCK_K, K), lo)
    x_rows = x + tl.minimum(m, M - 1).to(tl.int64) * (x_units * X_UNIT)
    left, right, squares = tile_products(
        x_rows, norm, weight + column * stride, weight + (column + HALF) * stride, lo, hi, True, True, BLOCK_M, BLOCK_P,
        BLOCK_K, VEC, STAGES,
    )  # fmt: skip
    if parts is None:
        if norm is not None:
            inverse = tl.rsqrt(squares / K + eps)[None, :]
            left *= inverse
            right *= inverse
        _rotate_and_append(
            left, right, p, m, head, q_bias, k_bias, v_bias, None, None, cos, sin, cos_stride, sin_stride, positions,
            slots, q_out, k_cache, k_batch, k_head, k_row, v_cache, v_batch, v_head, v_row, live, M, tokens, limit,
            slot_limit, eps, HEADS, KV_HEADS, HEAD_DIM,
        )  # fmt: skip
    else:
        WIDTH: tl.constexpr = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        kept = tl.where(live, M, 0)  # of a skipped sublayer nothing is stored, and the second kernel reads nothing
        inside = (p < HALF)[:, None] & (m < kept)[None, :]
        at = parts + (split * M + m).to(tl.int64)[None, :] * WIDTH + head * HEAD_DIM + p[:, None]
        tl.store(at, left, mask=inside)
        tl.store(at + HALF, right, mask=inside)
        if norm is not None:
            tl.store(part_squares + split * M + m, squares, mask=m < tl.where(tl.program_id(0) == 0, kept, 0))


@triton.jit(do_not_specialize=["sublayer", "M", "splits", "tokens"])
def rope_append_kernel(q, k, v, q_row, kv_row, part_squares, q_bias, k_bias, v_bias, q_norm, k_norm, cos, sin,
                       cos_stride, sin_stride, positions, slots, q_out, k_cache, k_batch, k_head, k_row, v_cache,
                       v_batch, v_head, v_row, skip, sublayer, M, K, splits, tokens, limit, slot_limit, eps,
                       HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
                       BLOCK_P: tl.constexpr, PDL: tl.constexpr,
                       ):  # fmt: skip
    """Finishes projections [splits, M, ...]: one head of BLOCK_M rows a program. Grid: (row tiles, heads)."""
    begin_kernel(PDL)
    HALF: tl.constexpr = HEAD_DIM // 2
    live = is_live(skip, sublayer)
    head = tl.program_id(1)
    p = tl.arange(0, BLOCK_P)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    local = head - _of_head(0, HEADS, HEADS + KV_HEADS, head, HEADS, KV_HEADS)
    source = _of_head(q, k, v, head, HEADS, KV_HEADS)
    stride = _of_head(q_row, kv_row, kv_row, head, HEADS, KV_HEADS)
    kept = tl.where(live, M, 0)
    inside = (p < HALF)[:, None] & (m < kept)[None, :]
    left = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
    right = tl.zeros((BLOCK_P, BLOCK_M), tl.float32)
    squares = tl.zeros((BLOCK_M,), tl.float32)
    for split in range(0, splits):
        at = source + (split * M + m).to(tl.int64)[None, :] * stride + local * HEAD_DIM + p[:, None]
        left += tl.load(at, mask=inside, other=0.0).to(tl.float32)
        right += tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
        if part_squares is not None:
            squares += tl.load(part_squares + split * M + m, mask=m < kept, other=0.0)
    if part_squares is not None:
        inverse = tl.rsqrt(squares / K + eps)[None, :]
        left *= inverse
        right *= inverse
    _rotate_and_append(
        left, right, p, m, head, q_bias, k_bias, v_bias, q_norm, k_norm, cos, sin, cos_stride, sin_stride, positions,
        slots, q_out, k_cache, k_batch, k_head, k_row, v_cache, v_batch, v_head, v_row, live, M, tokens, limit,
        slot_limit, eps, HEADS, KV_HEADS, HEAD_DIM,
    )  # fmt: skip


def norm_qkv_rope(
    x: Tensor, norm: Tensor, eps: float, q_weight: Tensor, k_weight: Tensor, v_weight: Tensor,
    q_bias: Tensor | None, k_bias: Tensor | None, v_bias: Tensor | None, q_norm: Tensor | None, k_norm: Tensor | None,
    cos: Tensor, sin: Tensor, positions: Tensor, k_cache: Tensor, v_cache: Tensor,
    skip: Tensor | None = None, sublayer: int = 0, slots: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """q [B, T, N, D] of x [B, T, H], rotated by its positions; k and v go to the caches' rows `slots` (the positions
    where not given). A set skip flag: zeros, caches untouched."""
    checks.expect(x.dim() == 3, f"x: [batch, tokens, hidden] is expected, not {list(x.shape)}")
    batch, tokens, inner = x.shape
    flat, device = checks.activations(x, "x", q_weight), x.device
    checks.caches(k_cache, v_cache, batch, device)
    _, kv_heads, length, head_dim = k_cache.shape
    checks.vector(norm, inner, "norm", q_weight)
    for weight, bias, what in ((q_weight, q_bias, "q"), (k_weight, k_bias, "k"), (v_weight, v_bias, "v")):
        checks.matrix(weight, inner, f"{what}_weight", q_weight, q_weight.dtype)
        fits = what == "q" or weight.shape[0] == kv_heads * head_dim
        checks.expect(fits, f"{what}_weight: {kv_heads * head_dim} rows are expected, not {weight.shape[0]}")
        checks.vector(bias, weight.shape[0], f"{what}_bias", q_weight)
    checks.expect(
        head_dim > 0 and head_dim % 2 == 0 and q_weight.shape[0] % head_dim == 0,
        f"q_weight: whole heads of an even size {head_dim} are expected, not {q_weight.shape[0]} rows",
    )
    checks.vector(q_norm, head_dim, "q_norm", q_weight)
    checks.vector(k_norm, head_dim, "k_norm", q_weight)
    for table in (cos, sin):
        checks.expect(
            table.dtype == torch.float32 and table.dim() == 2 and table.shape == cos.shape and table.device == device
            and table.shape[1] == head_dim // 2 and (head_dim == 2 or table.stride(1) == 1),
            f"cos, sin: two float32 [positions, {head_dim // 2}] with contiguous rows are expected",
        )  # fmt: skip
    places = checks.indices(positions, (batch, tokens), "positions", device)
    written = None if slots is None else checks.indices(slots, (batch, tokens), "slots", device)
    checks.skip_mask(skip, sublayer, device)

    rows, heads = batch * tokens, q_weight.shape[0] // head_dim
    q_out = torch.empty(batch, tokens, heads, head_dim, dtype=x.dtype, device=device)
    if rows == 0:
        return q_out
    limit = min(length, cos.shape[0]) if slots is None else cos.shape[0]
    finish = dict(
        q_bias=q_bias, k_bias=k_bias, v_bias=v_bias, cos=cos, sin=sin, cos_stride=cos.stride(0),
        sin_stride=sin.stride(0), positions=places, slots=written, q_out=q_out, k_cache=k_cache,
        k_batch=k_cache.stride(0), k_head=k_cache.stride(1), k_row=k_cache.stride(2), v_cache=v_cache,
        v_batch=v_cache.stride(0), v_head=v_cache.stride(1), v_row=v_cache.stride(2), skip=skip, sublayer=sublayer,
        M=rows, K=inner, tokens=tokens, limit=limit, slot_limit=length, eps=eps, HEADS=heads, KV_HEADS=kv_heads,
        HEAD_DIM=head_dim, PDL=dependent(device),
    )  # fmt: skip
    all_heads = heads + 2 * kv_heads
    if rows > configs.SKINNY_ROWS:
        h = rms_norm(flat, norm, eps, q_weight.dtype)
        q, k, v = gemm(h, q_weight, None), gemm(h, k_weight, None), gemm(h, v_weight, None)
        _finish_heads(q, k, v, None, 1, q_norm, k_norm, device, finish)
        return q_out

    tile = skinny_tile(device, "norm_qkv_rope", rows, q_weight, pair=True)
    # A tile lies within a head: a tile wider than that would compute the last pairs again.
    tile = replace(tile, block_n=min(tile.block_n, power_of_2(head_dim // 2, 1 if rows <= configs.GEMV_ROWS else 16)))
    fused: Tensor | None = norm
    if needs_norm_first(q_weight, tile):
        flat, fused = rms_norm(flat, norm, eps, q_weight.dtype), None
    tiles = all_heads * cdiv(head_dim // 2, tile.block_n)
    splits, steps = configs.splits_for(architecture(device), tiles, inner, tile)
    parts = squares = None
    if splits > 1 or q_norm is not None or k_norm is not None:
        parts = torch.empty(splits, rows, all_heads * head_dim, dtype=torch.float32, device=device)
        squares = None if fused is None else torch.empty(splits, rows, dtype=torch.float32, device=device)
    x_unit, w_unit = alignment(flat), alignment(q_weight, k_weight, v_weight)
    launch(
        qkv_rope_kernel, (tiles, splits), device, tile.warps, tile.stages, tile.registers, **finish, x=flat,
        x_units=flat.stride(0) // x_unit, norm=fused, a=q_weight, a_units=q_weight.stride(0) // w_unit,
        k_weight=k_weight, k_units=k_weight.stride(0) // w_unit, v_weight=v_weight,
        v_units=v_weight.stride(0) // w_unit, parts=parts, part_squares=squares, steps=steps, X_UNIT=x_unit,
        W_UNIT=w_unit, BLOCK_M=tile.block_m, BLOCK_P=tile.block_n, BLOCK_K=tile.block_k,
        VEC=16 // q_weight.element_size(), STAGES=tile.stages,
    )  # fmt: skip
    if parts is not None:
        first_k, first_v = heads * head_dim, (heads + kv_heads) * head_dim
        q, k, v = parts, parts[:, :, first_k:], parts[:, :, first_v:]
        _finish_heads(q, k, v, squares, splits, q_norm, k_norm, device, finish)
    return q_out


def _finish_heads(
    q: Tensor, k: Tensor, v: Tensor, squares: Tensor | None, splits: int, q_norm: Tensor | None, k_norm: Tensor | None,
    device: torch.device, finish: dict,
) -> None:  # fmt: skip
    heads, kv_heads, head_dim = finish["HEADS"], finish["KV_HEADS"], finish["HEAD_DIM"]
    block_m = 4 if head_dim <= 256 else 1
    launch(
        rope_append_kernel, (cdiv(finish["M"], block_m), heads + 2 * kv_heads), device, 2, 1, **finish, q=q, k=k, v=v,
        q_row=q.stride(-2), kv_row=k.stride(-2), part_squares=squares, q_norm=q_norm, k_norm=k_norm, splits=splits,
        BLOCK_M=block_m, BLOCK_P=power_of_2(head_dim // 2),
    )  # fmt: skip
