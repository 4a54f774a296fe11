"""Bytes that an `Engine` allocates beyond the weights, derived from what it runs at full length.

Each term is a tensor that `engine.py`, an operator (`csrc/cpu`) or torch makes. The workspace is that of a CPU with the
native library: float32 activations and, for more than SKINNY_ROWS rows of half precision, the rows packed for our own
kernels where those multiply them (csrc/cpu/row_groups.h); else weights widened to float32 for torch's GEMM, slice by
slice, or, where this processor multiplies bfloat16 itself, activations and products rounded to it. On a GPU (`gpu`)
they have the weights' dtype, rows of odd width lie further apart (`gpu_stride`) and products need nothing else: an
estimate, never measured. What the weights take there is exact.
"""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from pyprune.models.decoder import FFN, MHA, Decoder
from pyprune.ops import native
from pyprune.ops.weight_formats import WeightFormat
from pyprune.runtime import memory
from pyprune.runtime.attention import ALIGNED, FEW_TOKENS, runs_operator
from pyprune.runtime.skip import SkipPlan, skip_plan
from pyprune.runtime.weight_formats import converted_bytes, converting_bytes
from pyprune.strides import gpu_stride

# What the CPU kernels choose (`schemas.CONSTANTS` says what each is).
SKINNY_ROWS, KV_SPLIT, PREFILL_QUERIES, SLICE_ELEMENTS, SLICE_ROWS = (
    native.constant(name) for name in ("SKINNY_ROWS", "KV_SPLIT", "PREFILL_QUERIES", "SLICE_ELEMENTS", "SLICE_ROWS")
)

FLOAT = 4


def cache_bytes(decoder: Decoder, batch: int, length: int, plan: SkipPlan | None = None) -> int:
    """Keys and values, `[batch, kv_heads, length, head_dim]` each, of every block with attention; with `plan`, only of
    those whose attention runs: the rest is allocated, but no token touches it."""
    sublayers = [block.mha for block in decoder.blocks]
    if plan is not None:
        sublayers = [mha for mha, runs in zip(sublayers, plan.mha, strict=True) if runs]
    rows = sum(2 * mha.kv_heads * mha.head_dim for mha in sublayers if mha is not None)
    return batch * length * rows * decoder.dtype.itemsize


def weight_bytes(decoder: Decoder, gpu: bool = False) -> int:
    """What all tensors take, a tied head once; with `gpu` as they lie there: where they are, or will be placed."""
    return sum(
        _kept_bytes(tensor) if gpu else tensor.numel() * tensor.element_size() for _, tensor in decoder.tensors()
    )


def _kept_bytes(tensor: Tensor) -> int:
    """What a weight takes on a GPU, what lies between its rows included."""
    if tensor.dim() != 2:
        return tensor.numel() * tensor.element_size()
    rows, columns = tensor.shape
    apart = tensor.stride(0) if tensor.device.type == "cuda" else gpu_stride(columns, tensor.element_size())
    return rows * max(columns, apart) * tensor.element_size()


def workspace_bytes(
    decoder: Decoder,
    batch: int,
    length: int,
    plan: SkipPlan,
    chunk: int,
    stored_as: WeightFormat | None = None,
    gpu: bool = False,
) -> int:
    """RoPE tables and the most that prefill (in chunks of `chunk` tokens) or a decode step holds at a time; with
    `stored_as` a weight that meets many rows is decoded, one at a time."""
    rope = decoder.rope
    sets = 2 if rope.limit is not None and length > rope.limit else 1  # a long prompt has tables of its own
    tables = sets * 2 * length * rope.inv_freq.numel() * FLOAT
    prefill = _prefill(decoder, batch, length, plan, chunk, stored_as, gpu)
    scratch = scratch_bytes(decoder, batch, length, plan, chunk, gpu)
    return tables + scratch + max(prefill, _decode(decoder, batch, length, plan))


def scratch_bytes(decoder: Decoder, batch: int, length: int, plan: SkipPlan, chunk: int, gpu: bool = False) -> int:
    """What the operators' threads keep for attention of many tokens: the parts of a few queries, and their scores."""
    tokens = min(length, chunk // min(batch, chunk))
    if tokens <= FEW_TOKENS or not _runs_operator(tokens, gpu):
        return 0
    peak = 0
    for mha in _running_mhas(decoder, plan):
        queries = max(1, PREFILL_QUERIES // mha.group) * mha.group
        part = ceil(length / KV_SPLIT) * queries * (mha.head_dim + 2)
        peak = max(peak, part + queries * (KV_SPLIT + mha.head_dim))
    return torch.get_num_threads() * FLOAT * peak


def require_engine(
    decoder: Decoder, max_batch: int, max_len: int, chunk: int, stored_as: WeightFormat | None = None
) -> None:
    """Raise InputError, with both figures, when caches and workspace of such an engine exceed what is available.

    The figure is what the engine may use at full length. A system that provides memory only when it is touched would
    let a larger engine begin, and end the process in the middle of a sequence.
    """
    needed = cache_bytes(decoder, max_batch, max_len)
    gpu = decoder.device.type == "cuda"
    needed += workspace_bytes(decoder, max_batch, max_len, skip_plan(decoder), chunk, stored_as, gpu)
    if stored_as:  # before there are caches, one matrix is there twice
        needed = max(converted_bytes(decoder, stored_as) + needed, converting_bytes(decoder, stored_as))
    what = f"{decoder.name}: an engine with max_batch {max_batch} and max_len {max_len}"
    memory.require(needed, decoder.device, what, "a lower max_batch or max_len is expected")


def _prefill(
    decoder: Decoder, batch: int, length: int, plan: SkipPlan, chunk: int, stored_as: WeightFormat | None, gpu: bool
) -> int:
    """The most that a chunk of full prompts holds: the engine's tensors, an operator's own, and a widened slice."""
    together = min(batch, chunk)  # sequences
    tokens = min(length, chunk // together)
    rows, hidden = together * tokens, decoder.hidden_size
    size = decoder.dtype.itemsize if gpu else FLOAT
    # States that live through every block: x, the embedded chunk and, from the second full chunk on, the last result.
    states = (3 if length >= 2 * tokens or batch >= 2 * together else 2) * hidden
    last = batch * hidden * size  # of each prompt's last token
    windows = {mha.window for mha in _running_mhas(decoder, plan)}
    masks = 0 if _runs_operator(tokens, gpu) else sum(_mask(tokens, length, window) for window in windows)
    peak = query = activation = 0  # widths of q (and context) and of the FFN's activation that the loop still holds

    def hold(*widths: int, besides: int = 0) -> None:
        nonlocal peak
        peak = max(peak, rows * size * (states + sum(widths)) + last + masks + besides)

    def apart(width: int) -> int:
        return gpu_stride(width, size) if gpu else width

    own_gemm = not gpu and native.has_own_gemm(decoder.dtype)

    def onto_hidden(inner: int) -> int:
        """What the products of o and down, `[hidden, inner]`, need."""
        if own_gemm:
            return _packed(decoder, rows, inner)
        return _product(decoder, stored_as, rows, hidden, inner, gpu)

    for block, mha_runs, ffn_runs in zip(decoder.blocks, plan.mha, plan.ffn, strict=True):
        if mha_runs and block.mha is not None:
            mha, held = block.mha, query + activation  # the last block's context, and activation
            width, kv_width = apart(mha.heads * mha.head_dim), apart(mha.kv_heads * mha.head_dim)
            if own_gemm:
                hold(held, query, width, besides=_packed(decoder, rows, hidden))
            else:
                product = _product(decoder, stored_as, rows, width, hidden, gpu)
                hold(held, query, hidden, 2 * width, besides=product)  # norm, q twice
                product = _product(decoder, stored_as, rows, kv_width, hidden, gpu)
                hold(held, query, hidden, 2 * width, 2 * kv_width, besides=product)
            hold(held, width, width, besides=_attention(decoder, mha, together, tokens, length, gpu))  # q, context
            query = width
            product = onto_hidden(width)
            hold(activation, 2 * query, hidden if own_gemm else 2 * hidden, besides=product)
        if ffn_runs and block.ffn is not None:
            width = apart(block.ffn.width)
            if own_gemm:
                hold(activation, 2 * query, width, besides=_packed(decoder, rows, hidden))
            else:
                product = _product(decoder, stored_as, rows, width, hidden, gpu)
                hold(activation, 2 * query, hidden, 3 * width, besides=product)  # norm; gate, up and what comes of them
            activation = width
            product = onto_hidden(width)
            hold(activation, 2 * query, hidden if own_gemm else 2 * hidden, besides=product)
    return peak


def _running_mhas(decoder: Decoder, plan: SkipPlan) -> list[MHA]:
    blocks = zip(decoder.blocks, plan.mha, strict=True)
    return [block.mha for block, runs in blocks if runs and block.mha is not None]


def _running_ffns(decoder: Decoder, plan: SkipPlan) -> list[FFN]:
    blocks = zip(decoder.blocks, plan.ffn, strict=True)
    return [block.ffn for block, runs in blocks if runs and block.ffn is not None]


def _packed(decoder: Decoder, rows: int, inner: int) -> int:
    """x `[rows, inner]` as our own kernels multiply it."""
    return native.packed_bytes(decoder.dtype, inner, rows)


def _product(decoder: Decoder, stored_as: WeightFormat | None, rows: int, outer: int, inner: int, gpu: bool) -> int:
    """What x `[rows, inner]` times a weight `[outer, inner]` needs beyond both and its float32 result: a slice of the
    weight as float32 or, where the processor multiplies bfloat16 itself, the rows and their product in it; besides, a
    weight in another format as plain values."""
    if rows <= SKINNY_ROWS or decoder.dtype.itemsize == FLOAT or gpu:
        return 0
    plain = outer * inner * decoder.dtype.itemsize if stored_as else 0
    if decoder.dtype == torch.bfloat16 and native.multiplies_bfloat16():
        return plain + rows * (inner + outer) * decoder.dtype.itemsize
    return plain + min(outer, max(SLICE_ROWS, SLICE_ELEMENTS // inner)) * inner * FLOAT


def _attention(decoder: Decoder, mha: MHA, batch: int, tokens: int, length: int, gpu: bool) -> int:
    """What attention of `tokens` over `length` cache rows needs beyond q and its result."""
    if tokens <= FEW_TOKENS:
        return _partial(mha, batch * tokens, length)
    if _runs_operator(tokens, gpu):
        return 0  # `scratch_bytes`
    held = _mask(tokens, length, mha.window) * FLOAT  # torch's SDPA makes float32 of it
    seen = 2 * batch * _seen(tokens, length, mha.window) * mha.kv_heads
    if decoder.dtype.itemsize != FLOAT and not gpu:  # else they are a view of the caches
        held += seen * mha.head_dim * FLOAT
    if mha.head_dim % ALIGNED:
        held += (seen + batch * tokens * mha.heads) * ceil(mha.head_dim / ALIGNED) * ALIGNED * FLOAT
    return held


def _runs_operator(tokens: int, gpu: bool) -> bool:
    """As in `attention.py`."""
    return runs_operator(tokens, torch.device("cuda" if gpu else "cpu"))


def _seen(tokens: int, length: int, window: int) -> int:
    """Cache rows that the last `tokens` of a sequence look at."""
    return min(length, window + tokens - 1) if window else length


def _mask(tokens: int, length: int, window: int) -> int:
    """The mask of a chunk, bool `[tokens, rows seen]`; none where plain causal attention says it all."""
    if tokens <= FEW_TOKENS or (tokens == length and (not window or window >= length)):
        return 0
    return tokens * _seen(tokens, length, window)


def _partial(mha: MHA, rows: int, length: int) -> int:
    """Maximum, sum and values of every query head over each split of the cache."""
    return rows * mha.heads * ceil(length / KV_SPLIT) * (mha.head_dim + 2) * FLOAT


def _decode(decoder: Decoder, batch: int, length: int, plan: SkipPlan) -> int:
    """A step's scratch memory, for SKINNY_ROWS sequences at a time, and two sets of logits: the last ones are held
    while the next are made. Of more sequences than that they are there once more while they are put together."""
    mhas, ffns = _running_mhas(decoder, plan), _running_ffns(decoder, plan)
    query = max((mha.heads * mha.head_dim for mha in mhas), default=0)
    width = max((ffn.width for ffn in ffns), default=0)
    some = min(batch, SKINNY_ROWS)
    partial = max((_partial(mha, some, length) for mha in mhas), default=0)
    hidden = decoder.hidden_size
    rows = hidden + 2 * query + width + max(hidden, query, width)  # states, q, context, activation; packed
    sets = 2 if batch <= SKINNY_ROWS else 3
    return FLOAT * (some * rows + sets * batch * decoder.vocab_size) + partial
