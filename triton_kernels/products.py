"""A tile of x W^T: the device code that every projection shares.

Weights are streamed once, K contiguous, in 16-byte loads where rows start on 16 bytes. Full steps of K are read without
masks, since a mask on an odd K would break those loads up. Only the last step is masked, and nothing between the rows
of a padded weight is ever read.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin_kernel(PDL: tl.constexpr):
    """First in every kernel that may be started while the one before it runs (`launch.dependent`).

    Lets the next kernel be set up, then waits until the kernel before has ended and its writes are visible. Every
    program of every such kernel waits here before it reads or writes memory, so the end of a kernel implies the end of
    all kernels before it.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def load(pointers, inside, MASKED: tl.constexpr, STREAM: tl.constexpr):
    """STREAM: read once by a single program, so evicted first from the cache."""
    POLICY: tl.constexpr = "evict_first" if STREAM else ""
    if MASKED:
        return tl.load(pointers, mask=inside, other=0.0, eviction_policy=POLICY)
    else:
        return tl.load(pointers, eviction_policy=POLICY)


@triton.jit
def is_live(skip, sublayer):
    """False where the skip mask, if there is one, has this sublayer's flag set.

    Kernels fold this flag, and every other condition of the whole program, into a bound (`tl.where(live, M, 0)`), so
    that nothing is read for a skipped sublayer. Triton 3.9's interpreter refuses a scalar condition in a mask of many
    elements: it broadcasts the condition in the type of the compared values.
    """
    if skip is None:
        return tl.full((), 1, tl.int1)
    else:
        return tl.load(skip + sublayer) == 0


@triton.jit
def banded(tile, row_tiles, column_tiles, BAND: tl.constexpr):
    """(row tile, column tile) of a program: BAND row tiles pass over the columns together, row tiles the faster."""
    band = BAND * column_tiles
    first = tile // band * BAND
    height = tl.minimum(row_tiles - first, BAND)
    within = tile % band
    return first + within % height, within // height


@triton.jit
def _within_threads(values, VEC: tl.constexpr):
    """Sums the VEC neighbours that one thread has loaded: [A, B, K] -> [A, B, K / VEC] without a shuffle."""
    A: tl.constexpr = values.shape[0]
    B: tl.constexpr = values.shape[1]
    K: tl.constexpr = values.shape[2]
    return tl.sum(tl.reshape(values, (A, B, K // VEC, VEC)), axis=3)


@triton.jit
def _gemv_step(x_rows, norm, a_rows, b_rows, k, hi, acc_a, acc_b, squares,
               NORM: tl.constexpr, PAIR: tl.constexpr, MASKED: tl.constexpr, BLOCK_K: tl.constexpr, VEC: tl.constexpr,
               ):  # fmt: skip
    ks = k + tl.arange(0, BLOCK_K)
    inside = (ks < hi)[None, None, :]
    # Activations first: where two layouts meet, Triton keeps the later load's and converts the other through shared
    # memory. The weights must not be converted.
    h = load(x_rows[None, :, None] + ks[None, None, :], inside, MASKED, False).to(tl.float32)
    a = load(a_rows[:, None, None] + ks[None, None, :], inside, MASKED, True).to(tl.float32)
    if PAIR:
        b = load(b_rows[:, None, None] + ks[None, None, :], inside, MASKED, True).to(tl.float32)
    if NORM:
        squares += _within_threads(h * h, VEC)
        h *= load(norm + ks, ks < hi, MASKED, False).to(tl.float32)[None, None, :]
    acc_a += _within_threads(a * h, VEC)
    if PAIR:
        acc_b += _within_threads(b * h, VEC)
    return acc_a, acc_b, squares


@triton.jit
def _gemv(x_rows, norm, a_rows, b_rows, lo, hi,
          NORM: tl.constexpr, PAIR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
          VEC: tl.constexpr, STAGES: tl.constexpr,
          ):  # fmt: skip
    acc_a = tl.zeros((BLOCK_N, BLOCK_M, BLOCK_K // VEC), tl.float32)
    acc_b = tl.zeros((BLOCK_N if PAIR else 1, BLOCK_M, BLOCK_K // VEC), tl.float32)
    squares = tl.zeros((1, BLOCK_M, BLOCK_K // VEC), tl.float32)
    full = lo + (hi - lo) // BLOCK_K * BLOCK_K
    for k in tl.range(lo, full, BLOCK_K, num_stages=STAGES):
        acc_a, acc_b, squares = _gemv_step(
            x_rows, norm, a_rows, b_rows, k, hi, acc_a, acc_b, squares, NORM, PAIR, False, BLOCK_K, VEC
        )
    if full < hi:
        acc_a, acc_b, squares = _gemv_step(
            x_rows, norm, a_rows, b_rows, full, hi, acc_a, acc_b, squares, NORM, PAIR, True, BLOCK_K, VEC
        )
    return tl.sum(acc_a, axis=2), tl.sum(acc_b, axis=2), tl.reshape(tl.sum(squares, axis=2), (BLOCK_M,))


@triton.jit
def _add_product(w, h, acc, MASKED: tl.constexpr, BLOCK_K: tl.constexpr):
    """acc + w h. In float32, without tensor cores, the products of a step are summed before they are added to acc. The
    error grows with the longest chain of additions, which is then about BLOCK_K + K / BLOCK_K instead of K."""
    # The last, masked step adds its products to acc directly. With a separate sum there too, Triton 3.9 does not
    # compile the kernels with a norm: an assertion of LLVM's SLP vectorizer ends the process.
    if w.dtype == tl.float32 and not MASKED:
        # Without a limit of imprecise additions the compiler fuses the addition with the product again. The limit has
        # no other effect: it is meant for 8-bit operands.
        return acc + tl.dot(w, h, input_precision="ieee", max_num_imprecise_acc=BLOCK_K)
    else:
        return tl.dot(w, h, acc, input_precision="ieee")


@triton.jit
def _dot_step(x_rows, norm, a_rows, b_rows, k, hi, acc_a, acc_b, squares,
              NORM: tl.constexpr, PAIR: tl.constexpr, MASKED: tl.constexpr, STREAM: tl.constexpr, BLOCK_K: tl.constexpr,
              ):  # fmt: skip
    ks = k + tl.arange(0, BLOCK_K)
    inside = ks < hi
    a = load(a_rows[:, None] + ks[None, :], inside[None, :], MASKED, STREAM)
    h = load(x_rows[None, :] + ks[:, None], inside[:, None], MASKED, False)
    if NORM:
        h = h.to(tl.float32)
        squares += h * h
        h *= load(norm + ks, inside, MASKED, False).to(tl.float32)[:, None]
    h = h.to(a.dtype)
    # Weights are the operand of 16 or 64 rows of a tensor core instruction; activations the one that may be narrow.
    acc_a = _add_product(a, h, acc_a, MASKED, BLOCK_K)
    if PAIR:
        b = load(b_rows[:, None] + ks[None, :], inside[None, :], MASKED, STREAM)
        acc_b = _add_product(b, h, acc_b, MASKED, BLOCK_K)
    return acc_a, acc_b, squares


@triton.jit
def _dot(x_rows, norm, a_rows, b_rows, lo, hi,
         NORM: tl.constexpr, PAIR: tl.constexpr, STREAM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
         BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
         ):  # fmt: skip
    acc_a = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    acc_b = tl.zeros((BLOCK_N if PAIR else 1, BLOCK_M), tl.float32)
    squares = tl.zeros((BLOCK_K if NORM else 1, BLOCK_M), tl.float32)
    full = lo + (hi - lo) // BLOCK_K * BLOCK_K
    for k in tl.range(lo, full, BLOCK_K, num_stages=STAGES):
        acc_a, acc_b, squares = _dot_step(
            x_rows, norm, a_rows, b_rows, k, hi, acc_a, acc_b, squares, NORM, PAIR, False, STREAM, BLOCK_K
        )
    if full < hi:
        acc_a, acc_b, squares = _dot_step(
            x_rows, norm, a_rows, b_rows, full, hi, acc_a, acc_b, squares, NORM, PAIR, True, STREAM, BLOCK_K
        )
    return acc_a, acc_b, tl.sum(squares, axis=0)


@triton.jit
def tile_products(x_rows, norm, a_rows, b_rows, lo, hi,
                  PAIR: tl.constexpr, STREAM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                  BLOCK_K: tl.constexpr, VEC: tl.constexpr, STAGES: tl.constexpr,
                  ):  # fmt: skip
    """Products over k in [lo, hi) of weight rows with activation rows, float32 [BLOCK_N, BLOCK_M].

    x_rows [BLOCK_M], a_rows and b_rows [BLOCK_N] point at the rows' first values. With `norm` the activations are
    scaled by it and their sums of squares [BLOCK_M] are the third result: the caller multiplies by the inverse RMS,
    which is the same for the whole row. b_rows is read only where PAIR.
    """
    NORM: tl.constexpr = norm is not None
    if BLOCK_M < 16:
        return _gemv(x_rows, norm, a_rows, b_rows, lo, hi, NORM, PAIR, BLOCK_M, BLOCK_N, BLOCK_K, VEC, STAGES)
    else:
        return _dot(x_rows, norm, a_rows, b_rows, lo, hi, NORM, PAIR, STREAM, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
